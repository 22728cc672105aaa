"""Where the prompt of a call ends, and the prompt alone, as methods see it: what stands behind may not decide."""
