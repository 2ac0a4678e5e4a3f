"""Ways to run one function over many small tasks, one file each."""
