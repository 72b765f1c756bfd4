"""In-context learning with retrieved demonstrations (`ra-hmd in-context`)."""
