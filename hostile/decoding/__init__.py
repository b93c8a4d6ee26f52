"""Pictures, put to a decoder that is watched."""
