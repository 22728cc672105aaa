"""`vtc pages`: the page of each method, written from its docstring and presets."""
