"""Scores of the three heads with intervals, and the report about them."""
