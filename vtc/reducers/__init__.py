"""Methods that act between blocks of the vision tower: one file each."""
