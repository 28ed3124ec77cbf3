"""Tasks that measure the effect of faults."""
