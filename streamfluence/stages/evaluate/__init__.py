"""The verbs below ``evaluate``: how far scores can be trusted, measured on the run itself."""
