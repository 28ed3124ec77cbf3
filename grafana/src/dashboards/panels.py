"""The three kinds of panels, with their common settings."""

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
# The colour from each value on. No data is grey: neither good nor bad.
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
    """The current value, with a colour. Instant: a missing source shows as 'no data', not as its last value."""
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
    """Values over time. Gaps are not connected: there is no data in them.

    `last`: the legend shows each series' last value; without it, there is space for twice as many names.
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
    """The same graph with stacked series, if their sum is meaningful."""
    return panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(60).line_width(0)


def timeline(title: str, description: str, queries: Sequence[Query]) -> statetimeline.Panel:
    """One row per series with its count: red at 0, green above, empty without a value."""
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
    """Thresholds of one series that differ from the rest of its panel."""
    steps = [{"value": threshold.value, "color": threshold.color} for threshold in thresholds(levels)]
    return setting("thresholds", {"mode": "absolute", "steps": steps})


def fixed(color: str) -> DynamicConfigValue:
    """A fixed colour for a series: a queue has the same colour in each panel."""
    return setting("color", {"mode": "fixed", "fixedColor": color})
