"""Tables for the terminal."""

from lawa_jax.display import table
from lawa_jax.report.curves import Curves

_MANY = 12


def run_table(curves: Curves) -> str:
    """Raw against LAWA, epoch by epoch, and the epochs saved.

    Long runs show about twelve of their epochs, the last always; the log has them all.
    """
    epochs = sorted(curves.raw)
    stride = -(-len(epochs) // _MANY)
    shown = [e for i, e in enumerate(reversed(epochs)) if i % stride == 0][::-1]
    accuracy = "top1" in next(iter(curves.raw.values()), {})
    head = ["epoch", "raw loss"]
    if accuracy:
        head.append("raw top-1")
    if curves.k is not None:
        head += [f"LAWA k={curves.k} loss"] + ["LAWA top-1"] * accuracy + ["epochs saved"]
    rows = []
    for epoch in shown:
        raw, lawa = curves.raw[epoch], curves.lawa.get(epoch)
        row = [str(epoch), f"{raw['loss']:.4f}"]
        if accuracy:
            row.append(f"{raw['top1']:.2%}")
        if curves.k is not None:
            row.append(f"{lawa['loss']:.4f}" if lawa else "-")
            if accuracy:
                row.append(f"{lawa['top1']:.2%}" if lawa else "-")
            row.append(str(curves.saved[epoch]) if lawa else "-")
        rows.append(row)
    return table(head, rows, rule=True)


def summary(curves: Curves) -> str:
    """What the run shows, in sentences; nothing is left out because it looks bad."""
    best = min(curves.raw, key=lambda e: curves.raw[e]["loss"])
    lines = [f"raw weights: lowest validation loss {curves.raw[best]['loss']:.4f} at epoch {best}"]
    if curves.lawa:
        top = min(curves.lawa, key=lambda e: curves.lawa[e]["loss"])
        lines.append(
            f"LAWA k={curves.k}: lowest validation loss {curves.lawa[top]['loss']:.4f} "
            f"at epoch {top}"
        )
        better = sum(curves.lawa[e]["loss"] < curves.raw[e]["loss"] for e in curves.lawa)
        lines.append(
            f"the average is better than the raw weights at {better} of {len(curves.lawa)} epochs"
        )
    return "\n".join(lines)
