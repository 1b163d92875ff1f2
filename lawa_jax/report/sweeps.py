"""Evaluated sweeps as a figure: every metric over the end of the window, a line a k and method."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lawa_jax.search.results import Row

RAW = "#8c8c8c"
_PANELS = 6


def sweep_plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw up to six metrics into `path` (PNG); raw checkpoints (k = 1) are grey."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))[:_PANELS]
    columns = min(len(names), 2)
    deep = -(-len(names) // columns)
    figure = Figure(figsize=(1 + 5.5 * columns, 0.6 + 3.6 * deep), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(deep, columns, squeeze=False).flat
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, rows, name)
    for axes in list(figure.axes)[len(names) :]:
        axes.remove()
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=130)


def _panel(axes: Axes, rows: Sequence[Row], metric: str) -> None:
    lines: dict[tuple[int, str], dict[int, float]] = {}
    for row in rows:
        if metric in row.metrics:
            # One checkpoint is the same by every method.
            line = (row.k, "" if row.k == 1 else row.method)
            lines.setdefault(line, {})[row.end] = row.metrics[metric]
    methods = {method for k, method in lines if k > 1}
    for (k, method), points in sorted(lines.items()):
        label = "raw" if k == 1 else f"k = {k}" + (f", {method}" if len(methods) > 1 else "")
        ends = sorted(points)
        values = [points[end] for end in ends]
        axes.plot(ends, values, "o-", ms=3, label=label, color=RAW if k == 1 else None)
    axes.set_xlabel("step at which the average ends")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
