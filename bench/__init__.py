"""Benchmarks: contenders on one Redis, measured in turns. `make bench` runs them; bench/README.md describes them."""
