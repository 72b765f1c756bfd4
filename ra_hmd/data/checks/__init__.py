"""Checks of an imported data set (`ra-hmd data check`)."""
