"""Fusions from and for elsewhere: official checkpoints, the Hub."""
