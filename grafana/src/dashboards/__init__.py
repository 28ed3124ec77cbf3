"""Grafana's dashboards, as Python. `make dashboards` writes them to grafana/dashboards/ as JSON."""
