"""`vtc bench prefill`."""
