"""The verbs: one file each, called by the command line and by Python alike."""
