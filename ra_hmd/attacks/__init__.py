"""Attacks on memes: changes that leave their meaning to a reader, and attacked copies of data sets."""
