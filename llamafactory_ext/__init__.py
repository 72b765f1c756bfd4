"""Plugin for stock LLaMA-Factory. Keep this file empty of code: Python imports it at every start."""
