"""Fine-tuning the embedded model while it is compressed, and what that is worth."""
