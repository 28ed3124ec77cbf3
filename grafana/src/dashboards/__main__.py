"""`python -m dashboards`: writes each dashboard's JSON to grafana/dashboards/."""

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from .overview import overview

FOLDER = Path(__file__).resolve().parents[2] / "dashboards"
DASHBOARDS = {"overview.json": overview}


def render(name: str) -> str:
    """The JSON text of the dashboard that is written to the file of this name."""
    return JSONEncoder(sort_keys=True, indent=2).encode(DASHBOARDS[name]().build()) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / name).write_text(render(name), encoding="utf-8")
