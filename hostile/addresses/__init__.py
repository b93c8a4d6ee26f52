"""Addresses that lead inside."""
