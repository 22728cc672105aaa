"""Pictures and videos: reading them, and drawing what was kept of them."""
