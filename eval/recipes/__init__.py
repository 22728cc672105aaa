"""Published tables that can be run again."""
