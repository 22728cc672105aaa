"""A measurement: what is asked of which setting, and everything that becomes of it."""
