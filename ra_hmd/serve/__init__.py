"""The HTTP API (`ra-hmd serve`)."""
