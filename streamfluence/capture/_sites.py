"""Which parameters are captured, and which modules own them.

A weight is one piece of memory: a parameter under several names, or several
parameters that share it, is one. A site is a module that owns weights; it has the
rule of its kind or, without one, falls back to running the module again.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from streamfluence.capture._rule import Rule
from streamfluence.capture.functional import Functional
from streamfluence.errors import CoverageError, InputError
from streamfluence.registry import member, names


@dataclass(eq=False)
class Weight:
    """One trainable piece of memory.

    Attributes:
        names: Every name it has in the model, the first one first.
        tensors: The parameters that share it, by their name in ``model.named_parameters()``.
    """

    names: tuple[str, ...]
    tensors: Mapping[str, nn.Parameter]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(next(iter(self.tensors.values())).shape)


@dataclass(eq=False)
class Site:
    """A module whose calls are recorded, with the weights that are captured there, by path."""

    name: str
    module: nn.Module
    rule: Rule | None
    weights: dict[str, Weight]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [*self.module.named_parameters(remove_duplicate=False)]
        self.tensors = dict([*named, *self.module.named_buffers(remove_duplicate=False)])
        self.fallback = Functional(self.label, self.module, self.weights, self.tensors)

    @property
    def label(self) -> str:
        """What a message calls it."""
        return f"{self.name or 'the model itself'} ({type(self.module).__name__})"

    @property
    def owned(self) -> str:
        """The first names of its weights, for a message."""
        return shortened([weight.names[0] for weight in self.weights.values()])


def find_weights(model: nn.Module, exclude: Sequence[str]) -> tuple[list[Weight], list[str]]:
    """Return the weights to capture, in the model's order, and what is left out, as sentences.

    Raises:
        CoverageError: If nothing is trainable, or parameters overlap in memory without being equal.
        InputError: If a pattern matches no parameter.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    _refuse_odd(named)
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise InputError(f"exclude: no parameter's name matches {pattern!r}")
    frozen = [name for name, tensor in named if not tensor.requires_grad]
    empty = [name for name, tensor in named if tensor.requires_grad and not tensor.numel()]
    weights = list(_grouped([(n, t) for n, t in named if t.requires_grad and t.numel()]))
    excluded = [w for w in weights if _matches(w, exclude)]
    weights = [w for w in weights if not _matches(w, exclude)]
    if not weights:
        raise CoverageError(
            f"the model has no trainable parameter to capture ({len(frozen)} are frozen, "
            f"{len(excluded)} excluded); set requires_grad=True on some or exclude fewer"
        )
    _refuse_overlap(weights)
    said = [f"excluded: {', '.join(w.names)}" for w in excluded]
    said += [f"frozen, left out: {shortened(frozen)}"] if frozen else []
    said += [f"without an entry, left out: {shortened(empty)}"] if empty else []
    said += [f"tied, one block: {' = '.join(w.names)}" for w in weights if len(w.names) > 1]
    return weights, said


def find_sites(model: nn.Module, weights: Sequence[Weight]) -> dict[str, Site]:
    """Return the sites of a model by module name, in the model's order.

    Raises:
        CoverageError: If a layer is of a kind that has no per-example gradient.
    """
    by_tensor = {id(tensor): weight for weight in weights for tensor in weight.tensors.values()}
    rules = [rule() for rule in _rules()]
    sites = {}
    compiled: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}." if outer else "") for outer in compiled):
            continue  # called by compiled code, which runs no hooks
        script = isinstance(module, torch.jit.ScriptModule)
        compiled += [name] if script else []
        named = module.named_parameters(recurse=script, remove_duplicate=False)
        own = {path: by_tensor[id(tensor)] for path, tensor in named if id(tensor) in by_tensor}
        if own:
            sites[name] = Site(name, module, _rule_of(module, rules, own), own)
            _refuse_layer(sites[name])
    return sites


def shortened(items: Sequence[str], most: int = 4) -> str:
    """Return a list of names that fits a message."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _rules() -> Iterator[type[Rule]]:
    for name in names("capture"):
        kind = member("capture", name)
        if isinstance(kind, type) and issubclass(kind, Rule):
            yield kind


def _rule_of(module: nn.Module, rules: Sequence[Rule], own: Mapping[str, Weight]) -> Rule | None:
    if not set(own) <= {"weight", "bias"} or getattr(module, "weight", None) is None:
        return None
    return next((rule for rule in rules if rule.accepts(module)), None)


def _refuse_layer(site: Site) -> None:
    reason = site.rule.refusal(site.module) if site.rule else None
    if reason:
        raise CoverageError(f"{site.label}: {reason}, or exclude {site.owned}")


def _grouped(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[Weight]:
    """Yield one weight per piece of memory."""
    groups: dict[object, list[tuple[str, nn.Parameter]]] = {}
    for name, tensor in named:
        groups.setdefault(_memory(tensor), []).append((name, tensor))
    for group in groups.values():
        distinct = {id(tensor): (name, tensor) for name, tensor in reversed(group)}
        tensors = dict(reversed(distinct.values()))
        yield Weight(tuple(name for name, _ in group), tensors)


def _memory(tensor: nn.Parameter) -> object:
    if tensor.device.type == "meta":
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _matches(weight: Weight, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in weight.names for pattern in patterns)


def _refuse_odd(named: Sequence[tuple[str, nn.Parameter]]) -> None:
    for name, tensor in named:
        if is_lazy(tensor):
            raise CoverageError(f"{name} has no shape yet; run the model once on a batch first")
        if tensor.requires_grad and tensor.is_complex():
            raise CoverageError(f"{name} is complex, which is not supported; freeze or exclude it")


def _refuse_overlap(weights: Sequence[Weight]) -> None:
    """Refuse distinct parameters in the same memory, e.g. a weight tied to another's transpose."""
    spans = sorted((_span(weight) for weight in weights), key=lambda span: span[:2])
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise CoverageError(
                f"{first.names[0]} and {second.names[0]} share memory but not shape, so their "
                "gradients cannot be added; make one a function of the other, or exclude one"
            )


def _span(weight: Weight) -> tuple[int, int, Weight]:
    tensor = next(iter(weight.tensors.values()))
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size(), weight
