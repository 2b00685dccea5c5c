"""What all rooms share: errors, the console, progress, files that are whole or absent."""
