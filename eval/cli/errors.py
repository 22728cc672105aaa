"""What the command line says instead of a traceback."""


class InputError(ValueError):
    """Something the user gave can't be used; the message names the argument, its value and the way out."""
