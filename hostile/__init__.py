"""Attacks on the worker's real parts, and what they came to: `make hostile`."""
