"""Matrices that stand for the Hessian of the training loss, one file each."""
