"""Turn the names and paths that a benchmark is given into models that run."""
