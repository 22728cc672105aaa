"""Methods that cut a video into segments of similar frames and merge within them."""
