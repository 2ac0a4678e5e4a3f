"""How linear systems of a curvature that is only a product are solved, one file each."""
