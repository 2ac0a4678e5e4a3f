"""What the fidelity benchmark runs: jobs of the library, and the exact references beside them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fidelity_reference as reference
from cases.base import Case
from torch import Tensor

BYTES = (64, 128, 256, 512, 1024)  # 2,048 directions at 1,024
EVERY_MODEL_UP_TO = 512  # bytes; of more, fewer nets
UNSTORED = {"rows.codec": "float32", "rows.bytes": 0}


@dataclass(frozen=True)
class Variant:
    """One job of the library.

    Attributes:
        options: Dotted keys laid over the job of ``fidelity_library``.
        essential: Run for slow cases too.
        every_model: Judged on every net that is asked for, not on a few.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    essential: bool = False
    every_model: bool = False


def variants(case: Case, group: str) -> list[Variant]:
    """Return the jobs of one group that are run for a case."""
    return [one for one in GROUPS[group](case) if one.essential or not case.slow]


def default_rows(case: Case) -> list[Variant]:
    """Return the library's default at every size of a row."""
    return [
        Variant(f"default, {size} bytes", {"rows.bytes": size}, True, size <= EVERY_MODEL_UP_TO)
        for size in BYTES
    ]


def unstored_rows(case: Case) -> list[Variant]:
    """Return rows in float32, each coordinate kept: what the codec starts from."""
    layer, joint = ({"curvature.blocks": blocks} for blocks in ("layer", "joint"))
    fisher = {"curvature.name": "fisher"}
    none = {"projection.name": "identity", "curvature.name": "identity"}
    spectral = UNSTORED | {"projection.name": "spectral"}
    widths = {width: spectral | {"projection.width": width} for width in (512, 2048)}
    mixed = UNSTORED | {"projection.name": "principal"}
    return [
        Variant("principal 1024, float32", mixed | {"projection.width": 1024}, True),
        Variant("principal 512, float32", mixed | {"projection.width": 512}),
        Variant("spectral 512 by layer, float32", widths[512] | layer),
        Variant("spectral 512 joint, float32", widths[512] | joint),
        Variant("spectral 2048 by layer, float32", widths[2048] | layer, True),
        Variant("spectral 2048 joint, float32", widths[2048] | joint),
        Variant("spectral 2048 empirical Fisher, float32", widths[2048] | fisher, True),
        Variant("gradient dot product, float32", UNSTORED | none),
    ]


def fixed_bits(case: Case) -> list[Variant]:
    """Return one number of bits for every direction; as many as fit 256 bytes, if not all do."""
    return [
        Variant(
            f"fixed {width} x {bits} bits",
            {"rows.bytes": 0, "rows.width": width, "rows.bits": bits, "projection.width": width},
        )
        for width, bits in ((512, 4), (1024, 2), (2048, 1))
        if case.n_weights() > 2048
    ]


def other_projections(case: Case) -> list[Variant]:
    """Return random projections, float32 rows; with the Fisher they are TRAK's and LoGra's shape."""

    def projected(name: str, width: int, curvature: str, like: str = "") -> Variant:
        options = {"projection.name": name, "projection.width": width, "curvature.name": curvature}
        shown = curvature.replace("_", "-").replace("gauss-newton", "Gauss-Newton")
        label = f"{name} {width}, {shown}, float32{like}"
        return Variant(label, UNSTORED | options, name in ("gaussian", "factored"))

    trak = Variant(
        "gaussian 1024 joint, fisher, float32 (TRAK-like)",
        UNSTORED
        | {"projection.name": "gaussian", "projection.width": 1024}
        | {"curvature.name": "fisher", "curvature.blocks": "joint"},
        True,
    )
    return [
        trak,
        projected("gaussian", 1024, "gauss_newton"),
        projected("factored", 1024, "fisher", " (LoGra-like)"),
        projected("factored", 1024, "gauss_newton"),
        projected("sparse_jl", 1024, "gauss_newton"),
        projected("mask", 1024, "gauss_newton"),
        Variant(
            "factored 2048, 256 bytes",
            {"projection.name": "factored", "projection.width": 2048, "rows.bytes": 256},
        ),
    ]


def settings(case: Case) -> list[Variant]:
    """Return changes of one setting of the default 256-byte job, those that share a sketch together."""
    nothing = dict.fromkeys(("weight_decay", "learning_rate", "steps", "batch_size"))
    unknown = {f"curvature.{key}": value for key, value in nothing.items()}
    unknown |= {"curvature.optimizer": "sgd", "curvature.momentum": 0.0}
    decay = unknown | {"curvature.weight_decay": case.recipe.weight_decay}

    def damped(blocks: str) -> list[tuple[str, dict[str, Any]]]:
        said = {"joint": "joint", "layer": "by layer"}[blocks]
        return [
            (f"{said}, damping {d:g}", {"curvature.damping": d, "curvature.blocks": blocks})
            for d in case.dampings
        ]

    joint = damped("joint")
    adam = case.recipe.optimizer != "sgd"  # else a damping is the same for every weight anyway
    even = [(f"{name}, the same for every weight", unknown | o) for name, o in joint if adam]
    changes: list[tuple[str, dict[str, Any]]] = [
        ("int8", {"rows.codec": "int8"}),
        *joint,
        ("damping by the spectrum", unknown),
        *even,
        ("damping by the weight decay alone", decay),
        ("by layer", {"curvature.blocks": "layer"}),
        *damped("layer"),
        ("4 probes", {"sketch.probes": 4}),
        ("empirical Fisher", {"curvature.name": "fisher"}),
    ]
    return [
        *(
            Variant(f"256 bytes, {name}", {"rows.bytes": 256} | options, "damping" in name)
            for name, options in changes
        ),
        *_every_pair(case),
    ]


def _every_pair(case: Case) -> list[Variant]:
    """Return the default with as many pairs in its mixtures as there are weights, where it has fewer."""
    width, weights = 1024, case.n_weights()
    options = {"entries": width * weights, "pairs_per_feature": -(-weights // width)}
    changes = {f"projection.options.{key}": value for key, value in options.items()}
    return [
        Variant(f"{size} bytes, mixtures of every pair", {"rows.bytes": size} | changes, True)
        for size in (256, 512)
        if weights > 32 * width
    ]


GROUPS: dict[str, Callable[[Case], list[Variant]]] = {
    "default": default_rows,
    "unstored": unstored_rows,
    "fixed": fixed_bits,
    "projections": other_projections,
    "settings": settings,
}


def references(
    net: reference.Net, dampings: tuple[float, ...], joint: bool
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield name and exact scores, one method and damping each.

    Args:
        joint: Whether matrices over all weights fit.
    """
    yield "gradient dot product", lambda: reference.gradient_dot(net)
    corrected = reference.eigenvalue_corrected(net)
    for damping in dampings:
        at = f"damping {damping:g}"
        yield f"Gauss-Newton by layer, {at}", _damped(net, "gauss_newton", damping)
        yield f"EK-FAC exact factors, {at}", partial(corrected, damping)
        if joint:
            yield f"Gauss-Newton joint, {at}", _damped(net, "gauss_newton_joint", damping)
            yield f"empirical Fisher joint, {at}", _damped(net, "fisher_joint", damping)


def _damped(net: reference.Net, curvature: str, damping: float) -> Callable[[], Tensor]:
    return lambda: reference.damped(net, getattr(net, curvature), damping)
