"""ATP's thresholds: learned on a LLaVA that hides tokens softly, then compared."""
