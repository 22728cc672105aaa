"""What is trained: embedded models, ATP, DiffRate."""
