"""Stored crops: zero-shot retrieval and classification."""
