"""Methods that act once, on the projected visual tokens, before the first decoder layer: one file each."""
