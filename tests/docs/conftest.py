"""Fixtures of the tests of the documentation."""

from chromium import browser

__all__ = ["browser"]
