"""`vtc bench serve`: what an engine's server gains by pruning."""
