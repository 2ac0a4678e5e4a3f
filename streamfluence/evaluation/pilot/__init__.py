"""A few examples and queries of a run, scored under other settings and without projection."""
