"""What a run leaves: its folder, its lines, its results, and the numbers and tables made of them."""
