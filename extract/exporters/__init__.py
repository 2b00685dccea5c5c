"""Embeddings of a store in the formats that other programs read."""
