"""How an effect on the weights is carried through the steps of training, one file each."""
