"""Tools of the repository: data, training, measurement; see README.md for the commands."""
