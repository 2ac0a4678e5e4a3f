"""One opened run: what its documents say, what it rests on, what was made, and what is doubtful about it."""
