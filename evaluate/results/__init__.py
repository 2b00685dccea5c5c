"""Figures of methods: recall, intervals, comparisons, tables."""
