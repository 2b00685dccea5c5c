"""Execution on this machine, on Dask and on Slurm."""
