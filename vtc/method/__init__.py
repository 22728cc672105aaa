"""The words a method speaks: its kind, its budget, its fields, what it is shown and what it decides."""
