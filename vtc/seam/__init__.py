"""The decoder's side of a patch: hooks, and what they do with a call."""
