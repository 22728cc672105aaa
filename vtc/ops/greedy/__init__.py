"""Greedy choices on a CPU: the picks that the whole matrix would give, from a part of it."""
