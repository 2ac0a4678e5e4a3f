"""Where scores come from, one file each."""
