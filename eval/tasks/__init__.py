"""Tasks: what is asked, and how answers are scored; benchmarks of others are in `packaged`, a folder each."""
