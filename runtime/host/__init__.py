"""The process and its machine: CPU, threads, turns, other processes, and the token that stops calls."""
