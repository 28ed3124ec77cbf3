"""Starts celery-exporter as its own image does: the package on PyPI has no console script."""

from src.cli import cli

if __name__ == "__main__":
    cli(auto_envvar_prefix="CE")
