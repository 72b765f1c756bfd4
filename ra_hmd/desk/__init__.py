"""The moderators' desk: pages on which people decide on cases, rendered on the server."""
