"""A model as vtc sees it: its parts, its visual tokens, its cost, and how transformers calls it."""
