"""A task and a job for a model that was saved by transformers, and data that lie in files."""
