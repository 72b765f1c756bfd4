"""Feature stores: extraction from an LMM or encoder, storage, compatibility, the test lock."""
