"""How a picture is cut into tiles, put together again, and how much memory that takes."""
