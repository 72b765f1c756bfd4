"""What can be wrong with a copy of a data set, and how it is found, reported and mended."""
