"""Embeddings in, figures and pages out."""
