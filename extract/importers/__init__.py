"""Features that were extracted elsewhere, as stores."""
