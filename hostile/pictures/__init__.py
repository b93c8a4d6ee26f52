"""Pictures that mean harm, and pictures that only look so: made byte by byte, the same each time."""
