"""How a bank ages (`ra-hmd staleness`)."""
