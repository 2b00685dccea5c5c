"""The stores of several models on one split, as batches."""
