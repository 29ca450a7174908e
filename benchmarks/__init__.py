"""Latency, memory and quality, measured beside baselines."""
