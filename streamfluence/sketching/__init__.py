"""The workshop of the curvature: a sample is swept a few times, and what rows will be is decided."""
