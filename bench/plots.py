"""Plots of a run: bars of the medians, with the range of the rounds."""

from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

from matplotlib import pyplot as plt

from bench.report import Column, Measured

COLORS = {"stock": "#8c8c8c", "plus": "#c58b2a", "library": "#7aa6c2", "atomic": "#1f5f8b", "effect": "#1f5f8b"}
OTHERS = "#6b4f8a"


def plot(measured: Measured, conditions: dict[str, Any], file: Path) -> None:
    """One panel for each column."""
    names = list(measured.samples)
    height = 1.6 + 0.28 * len(names)
    figure, panels = plt.subplots(1, len(measured.columns), figsize=(11, height), sharey=True, squeeze=False)
    for panel, column in zip(panels[0], measured.columns, strict=True):
        _bars(panel, measured, column, names)
    figure.suptitle(measured.title)
    text = fill("; ".join(f"{name}: {value}" for name, value in conditions.items()), 200)
    figure.text(0.01, 0.01, text, fontsize=6, color="#555555")
    figure.tight_layout(rect=(0, 0.6 / height, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _bars(panel: plt.Axes, measured: Measured, column: Column, names: list[str]) -> None:
    values = [measured.values(name, column.key) for name in names]
    medians = [median(each) for each in values]
    ranges = [
        [middle - min(each) for middle, each in zip(medians, values, strict=True)],
        [max(each) - middle for middle, each in zip(medians, values, strict=True)],
    ]
    colors = [COLORS.get(name.split()[0], OTHERS) for name in names]
    panel.barh(names, medians, xerr=ranges, color=colors, ecolor="#222222", capsize=2)
    panel.invert_yaxis()
    panel.set_xlabel(column.title)
    panel.spines[["top", "right"]].set_visible(False)
