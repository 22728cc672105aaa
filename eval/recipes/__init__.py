"""`vtc recipe` and `vtc presets`: published settings and tables, and how they are run again."""
