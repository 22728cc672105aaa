"""`vtc bench kernels`."""
