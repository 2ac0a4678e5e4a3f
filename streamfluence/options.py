"""Make a member of a family from a table of options, which its own signature checks.

What a member can be told is written once, where it is made: in ``__init__``, or in ``allocate`` of a
codec. So the options of a plug-in work without a line elsewhere.
"""

import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any, Literal

from streamfluence.errors import InputError
from streamfluence.registry import member

# What a family gives to every member; all other parameters are options.
_GIVEN = {
    "projections": ("blocks", "width", "seed"),
    "codecs": ("energies", "row_bytes", "seed"),
    "data": ("root",),
}
_MADE_BY = {"codecs": "allocate"}
_WORDS = {"data": "reader"}
_ATOMS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def make(family: str, name: str, options: Mapping[str, Any], *given: Any) -> Any:
    """Return a member made of what its family gives, and of options; of a codec what ``allocate`` returns.

    Raises:
        InputError: As ``checked``, or what the member says of a value.
    """
    return checked(family, name, options)(*given, **options)


def checked(family: str, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return what makes a member, after checking a table of options by its signature.

    Raises:
        InputError: If there is no such member, an option is unknown (with the nearest known one) or
            of another type than it is annotated with, or a required one is missing.
    """
    kind = member(family, name)
    known, open_ended = _known(family, kind)
    said = f"{_WORDS.get(family, family.removesuffix('s'))} {name!r}"
    listed = f"it knows: {', '.join(known) or 'none'}"
    for key, value in options.items():
        if key in known:
            _check_type(key, said, value, known[key])
        elif not open_ended or key in _GIVEN.get(family, ()):
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{said} has no option {key!r}; {hint}{listed}")
    lacking = [key for key, each in known.items() if each.default is Parameter.empty]
    lacking = [key for key in lacking if key not in options]
    if lacking:
        raise InputError(f"{said} needs {', '.join(lacking)}; {listed}")
    made: Callable[..., Any] = getattr(kind, _MADE_BY[family]) if family in _MADE_BY else kind
    return made


def maker(family: str) -> str:
    """Return the name of the function whose parameters are the options of a family's members."""
    return _MADE_BY.get(family, "__init__")


def _known(family: str, kind: type) -> tuple[dict[str, Parameter], bool]:
    """Return the options of a member by name, types resolved, and whether it takes any other."""
    found: dict[str, Parameter] = {}
    further = False
    for function in _makers(family, kind):
        parameters = list(signature(function).parameters.values())[1:]  # without self or cls
        hints = _hints(function)
        for each in _without_given(family, parameters):
            found.setdefault(each.name, each.replace(annotation=hints.get(each.name, Any)))
        further = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
        if not further:
            break
    return found, further


def _makers(family: str, kind: type) -> Iterator[Callable[..., Any]]:
    """Yield what makes a member and then, for options that it hands on, what makes its ancestors."""
    for each in kind.__mro__:
        if each is object or each.__module__ == f"streamfluence.{family}.base":
            return
        function = vars(each).get(maker(family))
        if function is not None:
            yield getattr(function, "__func__", function)


def _without_given(family: str, parameters: list[Parameter]) -> list[Parameter]:
    """Return the options among the parameters; what the family gives may have other names."""
    given = _GIVEN.get(family, ())
    named = [each for each in parameters if each.kind not in _VARIADIC]
    if set(given) <= {each.name for each in named}:
        return [each for each in named if each.name not in given]
    return named[len(given) :]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a plug-in may annotate with names that only a type checker knows
        return {}


def _check_type(key: str, said: str, value: Any, parameter: Parameter) -> None:
    """Refuse a value of another type than the annotation, where that is made of what TOML has."""
    hint = parameter.annotation
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    choices = typing.get_args(hint) if union else (hint,)
    if all(_is_plain(each) for each in choices) and not any(_fits(value, c) for c in choices):
        words = [_described(each) for each in choices if each is not types.NoneType]
        wanted = " or ".join(words)
        raise InputError(f"{key} must be {wanted}, not {value!r} (an option of the {said})")


def _is_plain(hint: Any) -> bool:
    return hint in (*_ATOMS, types.NoneType) or typing.get_origin(hint) is Literal


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _described(hint: Any) -> str:
    return _ATOMS.get(hint) or " or ".join(repr(choice) for choice in typing.get_args(hint))
