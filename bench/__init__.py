"""Contenders on one Redis, measured in turns. `make bench` runs them; docs/performance.md describes them."""
