"""The page of each method, written from its docstring."""
