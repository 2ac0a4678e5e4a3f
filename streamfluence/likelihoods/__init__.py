"""What outputs mean: loss, margin and output Hessian of each kind of target, a file a member."""
