"""What faults are measured by."""
