"""Commands of one file each; a larger one has a room, with `command.py` in it."""
