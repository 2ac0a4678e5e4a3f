"""How one row is stored in a given number of bytes, one file a codec."""
