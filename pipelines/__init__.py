"""The stages as jobs, on one machine or a cluster."""
