"""Inverses of damped curvatures: what whitens rows before they are stored, one file each."""
