"""What every package builds on: errors, configuration, files and manifests, tasks, heads, progress, plots."""
