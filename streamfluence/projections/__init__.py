"""Linear maps from an example's gradient to a short row, one file each."""
