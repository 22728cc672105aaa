"""`vtc bench prefill`: how much of the speed-up that the FLOPs promise arrives on the clock."""
