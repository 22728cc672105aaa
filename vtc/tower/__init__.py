"""The vision tower's side of a patch: what reducers remove there, and what selectors see of it."""
