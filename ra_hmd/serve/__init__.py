"""The detector behind an API and a console: one model, asked by many at once."""
