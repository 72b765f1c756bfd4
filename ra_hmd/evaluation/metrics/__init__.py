"""Metrics, intervals and significance tests."""
