"""Kernel ridge regression over labelled rows: kernels, the linear system with its updates, and leave-one-out tuning."""
