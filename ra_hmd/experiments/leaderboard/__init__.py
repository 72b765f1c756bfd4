"""Results of many systems over many data sets (`ra-hmd results`)."""
