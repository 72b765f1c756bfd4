"""The evaluation report: sections, plots, files."""
