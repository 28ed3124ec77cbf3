"""Tasks that only lessons call."""
