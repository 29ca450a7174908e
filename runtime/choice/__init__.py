"""The choice of the engine and the precision in which a bundle runs on this machine."""
