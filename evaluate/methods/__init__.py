"""Every way of scoring images against captions."""
