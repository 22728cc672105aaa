"""Methods that act in front of chosen decoder layers, during prefill: one file each."""
