"""Draw the fidelity benchmark: LDS against bytes per example, one panel a case.

python tools/bench/plot.py            # needs the extra `plot`; writes tools/bench/results/fidelity.svg

``tools/bench/fidelity.py`` draws it too, after every run.
"""

from typing import Any

import matplotlib

matplotlib.use("svg")

import fidelity_table
import matplotlib.pyplot as plt
from fidelity_rows import PEERS, REFERENCES, RESULTS
from matplotlib.axes import Axes

STYLES = {
    "default": {"marker": "o", "linestyle": "-", "color": "C3", "label": "default"},
    "unstored": {"marker": "s", "linestyle": "", "color": "C0", "label": "float32 rows"},
    "fixed": {"marker": "^", "linestyle": "", "color": "C1", "label": "fixed bits"},
    "projections": {"marker": "v", "linestyle": "", "color": "C2", "label": "random projections"},
    PEERS: {"marker": "x", "linestyle": "", "color": "black", "label": "peers"},
}
COLUMNS = 3  # of panels
FEW = 2  # nets that every row of a case has, where it has more than one
NOTHING_STORED = 16  # where a peer that keeps nothing of an example is drawn


def draw() -> None:
    """Write the figure."""
    plt.rcParams["svg.hashsalt"] = "fidelity"  # the same rows make the same file
    results = fidelity_table.stored()
    n_rows = -(-len(results) // COLUMNS)
    figure, grid = plt.subplots(n_rows, COLUMNS, figsize=(15, 4.25 * n_rows), squeeze=False)
    for axes, (key, result) in zip(grid.flat, results.items(), strict=False):
        _panel(axes, key, result)
    for axes in list(grid.flat)[len(results) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(RESULTS / "fidelity.svg", metadata={"Date": None})
    print(RESULTS / "fidelity.svg")


def _panel(axes: Axes, key: str, result: dict[str, Any]) -> None:
    for group, style in STYLES.items():
        rows = sorted(
            (max(row["bytes"], NOTHING_STORED), _lds(row))
            for row in result["rows"]
            if row["group"] == group
        )
        if rows:
            axes.plot(*zip(*rows, strict=True), **style)
    exact = [row for row in result["rows"] if row["group"] == REFERENCES]
    for begin, color in ((fidelity_table.exact_kind(result["rows"]), "C4"), ("EK-FAC", "C5")):
        best = max((_lds(r) for r in exact if r["method"].startswith(begin)), default=None)
        if best is not None:
            axes.axhline(best, color=color, linestyle="--", label=f"{begin}, best damping")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes per example")
    axes.set_ylabel("LDS of one model, first nets")
    axes.set_ylim(bottom=0)
    axes.set_title(f"({key}) {result['setup']['title']}", fontsize=10)


def _lds(row: dict[str, Any]) -> float:
    """Return the mean over the first nets, so that a line does not change nets on its way."""
    first = row["lds_each"][:FEW]
    return sum(first) / len(first)


if __name__ == "__main__":
    draw()
