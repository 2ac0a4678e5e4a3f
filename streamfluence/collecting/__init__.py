"""The workshop of rows: every example's gradient, in the directions that the sketch decided."""
