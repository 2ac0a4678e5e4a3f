"""What is measured of an example at one checkpoint, one file each."""
