"""By what the scores of each example are multiplied, one file each."""
