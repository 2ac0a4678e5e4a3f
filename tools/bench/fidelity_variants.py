"""What the fidelity benchmark runs: jobs of the library, references, and the figures each should meet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fidelity_reference import (
    Net,
    damped,
    dense_projection,
    eigenvalue_corrected,
    gradient_dot,
    solve_scores,
    trak,
)
from fidelity_truth import N_WEIGHTS
from torch import Tensor

DAMPINGS = (3e-4, 1e-3, 3e-3, 1e-2)
DENSE_WIDTH = 2048
BYTES = (64, 128, 256, 512, 1024)

UNSTORED = {"rows.codec": "float32", "rows.bytes": 0}


@dataclass(frozen=True)
class Variant:
    """One job of the library.

    Attributes:
        options: Dotted keys laid over the job of ``fidelity_library``.
        expected: LDS of one model and of two where METHODS 1.4 has the row (another training recipe).
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    expected: tuple[float, float] | None = None


def references(net: Net) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
    """Yield name, bytes of what would be stored, and float64 scores, one method and damping each."""
    whole, dense = 8 * N_WEIGHTS, 8 * DENSE_WIDTH  # float64, as in the protocol
    yield "gradient dot product", whole, lambda: gradient_dot(net)
    projection = dense_projection(DENSE_WIDTH, N_WEIGHTS)
    for damping in DAMPINGS:
        at = f"damping {damping:g}"
        yield f"Gauss-Newton by layer, {at}", whole, _damped(net, "gauss_newton", damping, True)
        yield f"Gauss-Newton joint, {at}", whole, _damped(net, "gauss_newton", damping, False)
        yield f"empirical Fisher joint, {at}", whole, _damped(net, "fisher", damping, False)
        yield f"EK-FAC exact factors, {at}", whole, lambda d=damping: eigenvalue_corrected(net, d)
        yield f"dense {DENSE_WIDTH} Gauss-Newton, {at}", dense, _dense(net, projection, damping)
        yield f"dense {DENSE_WIDTH} TRAK, {at}", dense, lambda d=damping: trak(net, projection, d)


def _damped(net: Net, curvature: str, damping: float, by_layer: bool) -> Callable[[], Tensor]:
    return lambda: damped(net, getattr(net, curvature), damping, by_layer)


def _dense(net: Net, projection: Tensor, damping: float) -> Callable[[], Tensor]:
    def scores() -> Tensor:
        gram = projection.T @ net.gauss_newton @ projection
        return (
            solve_scores(net.train @ projection, net.queries @ projection, gram, damping)
            / net.count
        )

    return scores


def default_rows() -> list[Variant]:
    """Return the rows of bytes, the issue's main figures."""
    known = {64: (0.654, 0.723), 128: (0.732, 0.778), 256: (0.772, 0.803), 512: (0.788, 0.815)}
    return [Variant(f"default, {b} bytes", {"rows.bytes": b}, known.get(b)) for b in BYTES]


def unstored_rows() -> list[Variant]:
    """Return rows in float32, each coordinate kept: what the codec starts from."""
    return [
        Variant(
            "default directions, float32", UNSTORED | {"projection.width": 2048}, (0.792, 0.816)
        ),
        Variant("spectral 512, float32", UNSTORED | {"projection.width": 512}, (0.775, 0.80)),
        Variant(
            "spectral 512 joint, float32",
            UNSTORED | {"projection.width": 512, "curvature.blocks": "joint"},
        ),
        Variant(
            "spectral 512 empirical Fisher, float32",
            UNSTORED | {"projection.width": 512, "curvature.name": "fisher"},
        ),
        Variant(
            "identity, no curvature, float32",
            UNSTORED | {"projection.name": "identity", "curvature.name": "identity"},
            (0.26, 0.27),
        ),
    ]


def fixed_bits() -> list[Variant]:
    """Return fixed widths and bits, every direction stored."""
    known = {
        (512, 4): (0.770, 0.796),
        (512, 2): (0.738, 0.778),
        (512, 1): (0.645, 0.718),
        (1024, 4): (0.787, 0.812),
        (1024, 2): (0.761, 0.797),
        (1024, 1): (0.690, 0.753),
    }
    return [
        Variant(
            f"fixed {width} x {bits} bits",
            {"rows.bytes": 0, "rows.width": width, "rows.bits": bits, "projection.width": width},
            expected,
        )
        for (width, bits), expected in known.items()
    ]


def other_projections() -> list[Variant]:
    """Return the random projections, float32 rows."""

    def projected(name: str, width: int, curvature: str, expected=None) -> Variant:
        options = {"projection.name": name, "projection.width": width, "curvature.name": curvature}
        return Variant(f"{name} {width}, {curvature}, float32", UNSTORED | options, expected)

    return [
        projected("gaussian", 2048, "gauss_newton", (0.75, 0.79)),
        projected("gaussian", 2048, "fisher", (0.63, 0.65)),
        projected("factored", 512, "gauss_newton", (0.62, 0.67)),
        projected("rademacher", 512, "gauss_newton"),
        projected("sparse_jl", 512, "gauss_newton"),
        projected("mask", 512, "gauss_newton"),
        Variant(
            "factored 2048, default codec, 256 bytes",
            {"projection.name": "factored", "projection.width": 2048},
        ),
    ]


def settings() -> list[Variant]:
    """Return changes of one setting of the default 256-byte job."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("joint", {"curvature.blocks": "joint"}),
        ("joint, damping 3e-3", {"curvature.blocks": "joint", "curvature.damping": 3e-3}),
        ("damping 3e-4", {"curvature.damping": 3e-4}),
        ("damping 3e-3", {"curvature.damping": 3e-3}),
        ("damping 3e-3 at scoring only", {"score.damping": 3e-3}),
        ("damping by the spectrum", {"curvature.weight_decay": 0.0}),
        ("1 probe", {"sketch.probes": 1}),
        ("4 probes", {"sketch.probes": 4}),
        ("16 probes", {"sketch.probes": 16}),
        ("sample of 512", {"sketch.examples": 512}),
        ("product energies", {"projection.options": {"energies": "product"}}),
        ("eigenvector pairs in every layer", {"projection.options": {"dense_limit": 0}}),
        ("1,024 directions", {"projection.width": 1024}),
        ("4,096 directions", {"projection.width": 4096}),
        ("empirical Fisher", {"curvature.name": "fisher"}),
        ("int8, same bytes", {"rows.codec": "int8"}),
    ]
    return [
        Variant(f"256 bytes, {name}", {"rows.bytes": 256} | options) for name, options in changes
    ]


GROUPS: dict[str, Callable[[], list[Variant]]] = {
    "default": default_rows,
    "unstored": unstored_rows,
    "fixed": fixed_bits,
    "projections": other_projections,
    "settings": settings,
}
