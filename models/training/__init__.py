"""Training: stages, data, the trainer, and the family that trains unattended."""
