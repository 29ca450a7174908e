"""Training seen from outside: curves, network sizes compared, and results shipped."""
