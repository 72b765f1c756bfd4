"""In-context learning with retrieved memes (`ra-hmd in-context`)."""
