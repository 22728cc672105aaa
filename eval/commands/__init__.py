"""Commands of one file each, and what a table of commands is; a larger one has a room, with `command.py` in it."""
