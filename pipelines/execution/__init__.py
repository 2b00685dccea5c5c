"""Who does the work: this machine, Dask, Slurm."""
