"""What the model is asked to do, and whose turn it is."""
