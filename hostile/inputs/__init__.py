"""Jobs that nobody wrote."""
