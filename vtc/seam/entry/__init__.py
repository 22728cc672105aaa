"""What is decided, and made, where the decoder is entered."""
