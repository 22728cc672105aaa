"""Speed, each figure beside what it could be at best."""
