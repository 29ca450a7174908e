"""Which engine and which precision a bundle runs in on this machine."""
