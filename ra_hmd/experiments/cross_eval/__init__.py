"""Cross-data-set evaluation (`ra-hmd cross-eval`)."""
