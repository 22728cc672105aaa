"""DiffRate's rates: learned on a LLaVA whose tower drops and merges softly."""
