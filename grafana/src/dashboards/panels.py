"""The three kinds of panels that dashboards are made of, with what is the same in all of them."""

from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")  # uid: grafana/provisioning/datasources/

# (PromQL, legend)
Query = tuple[str, str]
# From which value on which colour. What has no value is grey: no data is neither good nor bad.
Levels = Sequence[tuple[float, str]]
NO_DATA = "gray"


def thresholds(levels: Levels) -> list[Threshold]:
    """Colours by value."""
    return [Threshold(value=None, color=NO_DATA), *(Threshold(value=value, color=color) for value, color in levels)]


def targets(queries: Sequence[Query], instant: bool) -> list[prometheus.Dataquery]:
    """The queries of a panel. Grafana shows 'No data' for one that is neither range nor instant, or has no refId."""
    built = []
    for ref_id, (expr, legend) in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().datasource(PROMETHEUS).ref_id(ref_id).expr(expr).legend_format(legend)
        built.append(target.instant() if instant else target.range())
    return built


def number(title: str, description: str, queries: Sequence[Query], unit: str, levels: Levels) -> stat.Panel:
    """What is true now, judged by colour. Instant: a source that is gone shows as 'no data', not as its last value."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets(list(targets(queries, instant=True)))
        .unit(unit)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(thresholds(levels)))
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .color_mode(BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE_AND_NAME if queries[0][1] else BigValueTextMode.VALUE)
        .orientation(VizOrientation.VERTICAL)
        .reduce_options(common.ReduceDataOptions().calcs(["last"]))
        .no_value("no data")
    )


def graph(title: str, description: str, queries: Sequence[Query], unit: str, last: bool = True) -> timeseries.Panel:
    """How it came about. A gap stays a gap: a line through it would tell what nobody measured.

    `last`: the legend has each series' last value; without it, it holds twice as many names.
    """
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets(list(targets(queries, instant=False)))
        .unit(unit)
        .min(0)
        .span_nulls(False)
        .line_width(1)
        .fill_opacity(6)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .calcs(["last"] if last else [])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """The same graph with its series on top of one another, where their sum means something."""
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60).line_width(0)


def timeline(title: str, description: str, queries: Sequence[Query]) -> statetimeline.Panel:
    """One row a series with its count: red at 0, green above, empty where there was none."""
    red_at_0 = ValueMap(options={"0": ValueMappingResult(text="0", color="red")})
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets(list(targets(queries, instant=False)))
        .mappings([red_at_0])
        .color_scheme(FieldColor().mode(FieldColorModeId.FIXED).fixed_color("green"))
        .show_value(VisibilityMode.AUTO)
        .row_height(0.8)
        .line_width(0)
        .fill_opacity(70)
        .legend(common.VizLegendOptions().show_legend(False).display_mode(LegendDisplayMode.HIDDEN))
        .no_value("no data")
    )


def setting(name: str, value: Any) -> DynamicConfigValue:
    """One property of a field, for an override."""
    return DynamicConfigValue(id_val=name, value=value)


def only_for_this(levels: Levels) -> DynamicConfigValue:
    """Thresholds of one series, where it is held to others than the rest of its panel."""
    steps = [{"value": threshold.value, "color": threshold.color} for threshold in thresholds(levels)]
    return setting("thresholds", {"mode": "absolute", "steps": steps})


def fixed(color: str) -> DynamicConfigValue:
    """A series' own colour: the same queue has the same one in each panel."""
    return setting("color", {"mode": "fixed", "fixedColor": color})
