"""What the process has of the machine: CPU, threads, turns, other processes, and the token that stops calls."""
