"""What a compressed call gives back."""
