"""One backbone, changed: fewer tokens, augmented views, crops."""
