"""How transformers calls a model: the one place that knows its names for arguments, outputs and methods.

Each module is about one caller. A name that changed between releases stands there with the release that changed it;
no hook or adapter reads or writes an argument or an output of transformers by its name (a test holds it).
"""
