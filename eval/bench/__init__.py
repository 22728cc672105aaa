"""`vtc bench`: speed, each figure beside what it could be at best; a room for each thing that is timed."""
