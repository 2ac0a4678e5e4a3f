"""The workshop of scores: products of stored rows and queries, read out block by block."""
