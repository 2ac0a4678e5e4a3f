"""What is kept of the scores, one file a readout."""
