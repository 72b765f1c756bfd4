"""Model, data set and bank cards (`ra-hmd card`)."""
