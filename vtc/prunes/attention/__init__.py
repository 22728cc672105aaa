"""Prunes that keep what text attends to in the decoder."""
