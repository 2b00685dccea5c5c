"""Import and export of fusions: official checkpoints, the Hub."""
