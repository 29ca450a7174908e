"""Cut a picture into tiles, put them together again, and plan the memory that this takes."""
