"""Selectors that keep what the question asks for."""
