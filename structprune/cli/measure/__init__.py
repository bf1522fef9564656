"""What `compare` measures."""
