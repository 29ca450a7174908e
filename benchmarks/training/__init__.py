"""Tools around training: draw curves, compare network sizes, ship results."""
