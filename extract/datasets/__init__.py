"""Images and captions as they lie on disk."""
