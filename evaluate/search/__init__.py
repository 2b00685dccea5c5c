"""Search a split by text or image."""
