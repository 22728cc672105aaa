"""Where things are in a model family. `generic` serves most; a family that needs more has a short file here."""
