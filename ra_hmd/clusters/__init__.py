"""Semantic clusters of memes: fitting, reports, and guidance by a teacher."""
