"""What a benchmark is asked to measure: names and files become models that run."""
