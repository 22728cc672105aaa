"""Attention as methods read it, and the tap that hands it to them."""
