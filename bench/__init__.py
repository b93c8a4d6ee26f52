"""Where every published figure comes from."""
