"""Plots as PNG, drawn without a display."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lawa_jax.report.curves import Curves

RAW, LAWA = "#8c8c8c", "#0b6fb8"


def run_plot(curves: Curves, title: str, path: Path) -> None:
    """Raw against LAWA over epochs, and the epochs saved, written to `path`."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, saved = figure.subplots(1, 2, width_ratios=(1.35, 1))
    figure.suptitle(title)
    epochs = sorted(curves.raw)
    loss.plot(epochs, [curves.raw[e]["loss"] for e in epochs], "o-", ms=3, c=RAW, label="raw")
    ends = sorted(curves.lawa)
    if ends:
        label = f"LAWA, k = {curves.k}"
        values = [curves.lawa[e]["loss"] for e in ends]
        loss.plot(ends, values, "o-", ms=3, c=LAWA, label=label)
    losses = [m["loss"] for m in (*curves.raw.values(), *curves.lawa.values())]
    # Within a decade a logarithmic axis has hardly a number to label.
    if min(losses) > 0 and max(losses) > 10 * min(losses):
        loss.set_yscale("log")
    loss.set_xlabel("epoch")
    loss.set_ylabel("validation loss")
    loss.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.grid(alpha=0.3, which="both")
    loss.legend()
    _saved(saved, curves)
    figure.savefig(path, dpi=130)


def _saved(axes: Axes, curves: Curves) -> None:
    exact = {e: s.epochs for e, s in curves.saved.items() if not s.at_least}
    bounds = {e: s.epochs for e, s in curves.saved.items() if s.at_least}
    axes.bar(list(exact), list(exact.values()), color=LAWA, label="exact")
    if bounds:
        axes.bar(
            list(bounds),
            list(bounds.values()),
            facecolor="none",
            edgecolor=LAWA,
            hatch="////",
            label="at least: no raw epoch is as good",
        )
    axes.axhline(0, c="black", lw=0.8)
    axes.set_xlabel("epoch at which the average ends")
    axes.set_ylabel("epochs saved")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3, axis="y")
    if curves.saved:
        axes.legend(fontsize="small")
