"""The graph network: stored features to fused embeddings."""
