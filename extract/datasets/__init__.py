"""Images, captions and region features on disk."""
