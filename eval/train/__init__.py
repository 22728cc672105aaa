"""What is trained: the two bundled models, ATP's thresholds and DiffRate's counts, all by one loop (`loop`)."""
