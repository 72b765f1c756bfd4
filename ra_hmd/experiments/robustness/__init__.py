"""Robustness study (`ra-hmd robustness`): heads on clean and attacked memes, and what defences give and cost."""
