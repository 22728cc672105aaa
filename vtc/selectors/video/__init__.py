"""Selectors that were made for videos."""
