"""Tiny random models in the place of checkpoints that would have to be downloaded."""
