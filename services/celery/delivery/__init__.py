"""What keeps messages from being lost or applied twice."""
