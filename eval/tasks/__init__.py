"""Benchmarks: what is asked, and how answers are scored; the packaged ones are in `packaged`."""
