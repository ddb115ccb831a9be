"""Files of a data set: raw IDX files and prepared splits."""
