"""Pictures that steer what is drawn, beside the text: ControlNets, and what prepares pictures."""
