"""Strangers' servers, dialled with care."""
