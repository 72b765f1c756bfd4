"""Trained systems on the Hugging Face hub: the folder that is published, and its upload."""
