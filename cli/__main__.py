"""`python -m rdsr.cli` is the `rdsr` command."""

from .main import main

main()
