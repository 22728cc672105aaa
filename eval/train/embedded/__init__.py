"""The embedded model, from nothing."""
