"""Prometheus exporter for Celery queues on Redis: depth by priority, ages, consumers, unacked."""
