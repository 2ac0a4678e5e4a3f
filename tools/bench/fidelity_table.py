"""The stored rows of the fidelity benchmark as a table, and the figures they are held against."""

import json
from collections.abc import Iterable
from typing import Any

from cases import NAMES
from fidelity_rows import PEERS, REFERENCES, RESULTS

SHARE_OF_EXACT = 0.95


def stored(keys: Iterable[str] = tuple(NAMES)) -> dict[str, dict[str, Any]]:
    """Return what is stored of each case that has been run, peers included."""
    paths = {key: RESULTS / f"{key}.json" for key in keys}
    found = {key: json.loads(path.read_text()) for key, path in paths.items() if path.exists()}
    for key, result in found.items():
        if not any(row["group"] == PEERS for row in result["rows"]):
            result["rows"] += _peer_rows(key)
    return found


def _peer_rows(key: str) -> list[dict[str, Any]]:
    """Return the rows of ``tools/peers/judge.py`` that are a peer's default, or tuned on the truth."""
    path = RESULTS / "peers.json"
    rows = (
        json.loads(path.read_text())["cases"].get(key, {"rows": []})["rows"]
        if path.exists()
        else []
    )
    said = {"default": "its default", "tuned": "tuned on this truth"}
    return [
        {**row, "group": PEERS, "method": f"{row['peer']} {row['setting']}, {text}"}
        for row in rows
        for mark, text in said.items()
        if row[mark]
    ]


def table(keys: Iterable[str]) -> str:
    """Return every row of these cases for a person to read, and the checks under each case."""
    lines: list[str] = []
    for key, result in stored(keys).items():
        setup = result["setup"]
        lines += [
            "",
            f"({key}) {setup['title']}: {setup['weights']:,} weights, {setup['examples']:,} examples, "
            f"{setup['queries']} queries, {setup['subsets']} subsets x {setup['seeds']} seeds; noise "
            f"ceiling {setup['noise_ceiling']:.3f}, one retraining against the rest "
            f"{setup['one_retraining_against_the_rest']:.3f}",
            f"{'method':<56} {'bytes':>9} {'1 model':>8} {'named':>8} {'later':>8} {'mean of':>8} "
            f"{'models':>7}",
        ]
        for row in result["rows"]:
            figures = (row.get(f"lds_{name}") for name in ("1", "named", "later", "mean"))
            shown = " ".join("       -" if one is None else f"{one:>8.3f}" for one in figures)
            lines.append(
                f"{row['method']:<56} {row['bytes']:>9,} {shown} {len(row['lds_each']):>7}"
            )
        lines += [f"{name}: {text}" for name, text in checks(key, result["rows"])]
    return "\n".join(lines)


def checks(key: str, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the figures that the default is held against, as far as these rows can tell."""
    figures = {row["method"]: row for row in rows}
    found = []
    if key == "a":
        for size, which, least in (
            (256, "lds_1", 0.77),
            (64, "lds_1", 0.65),
            (256, "lds_mean", 0.8),
        ):
            value = figures.get(f"default, {size} bytes", {}).get(which)
            name = "one model" if which == "lds_1" else "mean of models"
            found += [_check(f"{size} bytes, {name}", value, least)]
    default = figures.get("default, 256 bytes")
    which = exact_kind(rows)
    exact = [row["lds_each"] for row in rows if _is_exact(row, which)]
    if default and exact:
        same = min(
            len(each) for each in (default["lds_each"], *exact)
        )  # the nets all have in common
        share = sum(default["lds_each"][:same]) / max(sum(each[:same]) for each in exact)
        found += [_check(f"256 bytes / {which} at its best damping", share, SHARE_OF_EXACT)]
    peers = [_on_the_same_nets(default, row) for row in rows if row["group"] == PEERS and default]
    if peers:
        own, best = min(peers, key=lambda pair: pair[0] - pair[1])
        found += [_check("256 bytes against the best peer", own, best)]
    return [check for check in found if check]


def exact_kind(rows: list[dict[str, Any]]) -> str:
    """Return how the method of the exact scores of these rows begins: by layer, joint if that is all."""
    by_layer = "Gauss-Newton by layer"
    found = any(_is_exact(row, by_layer) for row in rows)
    return by_layer if found else "Gauss-Newton joint"


def _on_the_same_nets(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Return the figures of two rows over the nets that both were judged on, the first ones."""
    same = min(len(one["lds_each"]), len(other["lds_each"]))
    return sum(one["lds_each"][:same]) / same, sum(other["lds_each"][:same]) / same


def _is_exact(row: dict[str, Any], which: str) -> bool:
    return row["group"] == REFERENCES and row["method"].startswith(which)


def _check(name: str, value: float | None, least: float) -> tuple[str, str] | None:
    if value is None:
        return None
    return name, f"{value:.3f} >= {least:.3f}: {'met' if value >= least else 'MISSED'}"
