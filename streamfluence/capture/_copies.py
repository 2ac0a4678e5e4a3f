"""Choose the parameters and outputs that get one copy per example, by trying the model with them."""

from collections.abc import Mapping, Sequence
from typing import Any

from streamfluence.capture._recorder import Call, Recorder, SharedParameter
from streamfluence.capture._sites import Site
from streamfluence.capture._trial import Trial
from streamfluence.capture.expanded import Expanded, candidates

Copies = Mapping[tuple[str, int], Expanded]


def copied_parameters(trial: Trial, sites: Mapping[str, Site]) -> dict[str, list[SharedParameter]]:
    """Return the parameters of modules with children that the model lets through as copies.

    Returns:
        By site; all of a site's own parameters, or the site is not there.
    """
    chosen: dict[str, list[SharedParameter]] = {}
    failed: set[tuple[Any, ...]] = set()
    for name, site in sites.items():
        kinds = {(type(site.module), p, w.shape) for p, w in site.weights.items()}
        # A module without children is cheap to run again, which needs no trial.
        if site.rule is None and any(site.module.children()) and not kinds & failed:
            others = [one for some in chosen.values() for one in some]
            rest = [s for n, s in sites.items() if n not in chosen]
            if found := _copied(trial, site, rest, others):
                chosen[name] = found
            else:
                failed |= kinds
    return chosen


def copied_output(
    trial: Trial,
    call: Call,
    sites: Sequence[Site],
    shared: Sequence[SharedParameter],
    copies: Copies,
) -> Expanded | None:
    """Return how to copy the output of a call that the batch shares, None if the model refuses it."""
    if len(call.shapes) != 1:
        return None
    for layout in candidates(call.shapes[0]):
        if _passes(trial, sites, shared, {**copies, call.key: layout}):
            return layout
    return None


def _copied(
    trial: Trial, site: Site, sites: Sequence[Site], others: Sequence[SharedParameter]
) -> list[SharedParameter]:
    """Return copies of all of one module's own parameters, or none."""
    found: list[SharedParameter] = []
    for path, weight in site.weights.items():
        for layout in candidates(weight.shape):
            one = SharedParameter(site.module, path, weight, layout)
            if _passes(trial, sites, [*others, *found, one], {}):
                found.append(one)
                break
        else:
            return []
    return found


def _passes(
    trial: Trial, sites: Sequence[Site], shared: Sequence[SharedParameter], copies: Copies
) -> bool:
    return trial.passes(
        lambda examples, nudge=1.0: Recorder(sites, shared, copies, examples, nudge)
    )
