"""Retrainings on parts of the training set, kept so that none is done twice."""
