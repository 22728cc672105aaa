"""Tokens that were dropped and come back in decode steps."""
