"""The moderators' console (`ra-hmd console`)."""
