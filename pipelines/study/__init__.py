"""A study: its configuration, jobs and progress."""
