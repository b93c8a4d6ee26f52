"""What must not be told, in every place and on every way to fail."""
