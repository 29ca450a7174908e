"""Time and memory of models, row by row, each in its own processes."""
