"""Data sets for training, each read into the same table of objects."""
