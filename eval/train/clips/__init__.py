"""The clip model, from the embedded one."""
