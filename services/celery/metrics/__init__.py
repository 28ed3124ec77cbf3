"""What workers, beat and the producer report of themselves to Prometheus."""
