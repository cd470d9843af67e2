"""Pictures that steer what is drawn: edges, scribbles, line art, …, made of pictures."""
