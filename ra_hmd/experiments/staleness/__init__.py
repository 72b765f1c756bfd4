"""Staleness study of a bank (`ra-hmd staleness`)."""
