"""Measures what a service needs of the runtime: start, unseen sizes, memory, many callers."""
