"""What scores are compared with: figures of agreement, retrainings, unprojected products."""
