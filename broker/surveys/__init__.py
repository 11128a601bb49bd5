"""One module a survey: bytes to Alert."""
