"""Pictures and videos, read and drawn."""
