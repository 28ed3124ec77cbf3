"""Grafana's dashboards: the JSON is made from its source, and each panel has a description."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.__main__ import DASHBOARDS, FOLDER, render

GRAFANA = Path(__file__).parents[2] / "grafana"


def load(name: str) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return dashboard


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Panels that show data, including those of collapsed rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def test_each_dashboard_has_its_file_and_each_file_its_source() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_json_is_what_the_source_gives(name: str) -> None:
    assert (FOLDER / name).read_text() == render(name), "run `make dashboards`"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_loads_in_grafana_10_to_13(name: str) -> None:
    dashboard = load(name)
    datasources = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    uids = {datasource["uid"] for datasource in datasources}
    assert dashboard["uid"]
    assert dashboard["schemaVersion"] <= 39  # the newest version that Grafana 10.4 reads
    assert dashboard["time"]["from"]
    assert dashboard["refresh"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(dashboard):
        assert panel["datasource"]["uid"] in uids, panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] in uids, panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0, panel["title"]
        # Neither: Grafana 10.4 says 'No data'.
        assert all(target["range"] != target["instant"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_panel_explains_itself(name: str) -> None:
    for panel in panels(load(name)):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["description"].endswith("."), panel["title"]
        if panel["type"] == "stat":
            assert defaults["noValue"] == "no data", panel["title"]
            assert len(defaults["thresholds"]["steps"]) > 1, panel["title"]
        if panel["type"] != "state-timeline":
            assert defaults["unit"], panel["title"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_fill_the_width(name: str) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in load(name)["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        taken = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells, panel["title"]
        cells |= taken
    height = max(y for _, y in cells) + 1
    assert cells == {(x, y) for x in range(24) for y in range(height)}
