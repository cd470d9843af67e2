"""Control: pictures that steer what is drawn, beside the text."""
