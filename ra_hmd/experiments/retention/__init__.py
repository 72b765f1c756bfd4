"""What tuning costs a model (`ra-hmd retention`)."""
