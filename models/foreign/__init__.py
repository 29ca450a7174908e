"""Plain networks of others, through spandrel (extra `[foreign]`): each becomes a direct network."""

from .network import Foreign, ForeignConfig
from .reading import UnknownToSpandrelError, read_foreign

__all__ = ["Foreign", "ForeignConfig", "UnknownToSpandrelError", "read_foreign"]
