"""The files of a run's folder: their checksums, and what binds them to each other."""
