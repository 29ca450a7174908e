"""What a service asks of the runtime: start, unseen sizes, memory, many callers."""
