"""Memes and their files: readers of data sets, checks, prompts, images."""
