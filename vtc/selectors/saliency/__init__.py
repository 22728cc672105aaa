"""Selectors that keep what the vision tower attends to."""
