"""Measure time and memory of models; every row runs in its own processes."""
