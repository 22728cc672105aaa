"""A model as vtc sees it: its parts, its visual tokens, and its cost."""
