"""Harness, tasks, metrics, the embedded model, and the `vtc` command line."""
