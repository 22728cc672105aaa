"""What visitors send, what is kept of it, and how much they may ask."""
