"""Feature stores in, a trained fusion out. Only the small graph network trains here."""
