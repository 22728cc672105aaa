"""What a prefill will cost, told from shapes, and the settings that meet a budget."""
