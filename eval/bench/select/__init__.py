"""`vtc bench select`."""
