"""`vtc doctor`: what is installed, what of it was tested, and whether compression is right on this machine."""
