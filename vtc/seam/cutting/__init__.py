"""What the layers of a decoder are called with, at the length of their segment."""
