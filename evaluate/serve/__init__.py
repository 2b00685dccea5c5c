"""A run behind a server: search by text and image over HTTP."""
