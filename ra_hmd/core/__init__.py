"""Foundations of every package: errors, configuration, files and manifests, tasks, heads, progress, plots."""
