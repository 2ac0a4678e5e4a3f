"""Options are tables that a member's own signature checks, with the nearest known key, in every family."""

from pathlib import Path
from typing import Literal

import pytest

from streamfluence import options
from streamfluence.errors import InputError
from streamfluence.job import Rows, Score
from streamfluence.job_parser import parse_job
from streamfluence.options import checked, make
from streamfluence.registry import names
from streamfluence.run.defaults import decisive
from streamfluence.short_forms import codec_options, readout_options

FAMILIES = ("data", "projections", "codecs", "curvature", "readouts")
OWN = [(family, name) for family in FAMILIES for name in names(family)]


class Base:
    def __init__(self, *, depth: int = 3, ratio: float | None = None):
        self.depth, self.ratio = depth, ratio


class HandsOn(Base):
    def __init__(self, *, kind: Literal["wide", "long"], **further):
        super().__init__(**further)
        self.kind = kind


class TakesAny:
    def __init__(self, **anything):
        self.anything = anything


class Untyped:
    def __init__(self, *, weight: "NotImported" = 1): ...  # noqa: F821


class Planned:
    @classmethod
    def allocate(cls, spectrum, nbytes, seed, *, level: int = 1):
        return {"level": level, "given": (spectrum, nbytes, seed)}


@pytest.fixture(autouse=True)
def members(monkeypatch):
    known = {each.__name__: each for each in (Base, HandsOn, TakesAny, Untyped, Planned)}
    real = options.member
    monkeypatch.setattr(options, "member", lambda family, n: known.get(n) or real(family, n))


def test_a_member_is_made_of_its_options():
    made = make("readouts", "HandsOn", {"kind": "wide", "ratio": 2})
    assert (made.kind, made.depth, made.ratio) == ("wide", 3, 2)


def test_what_the_family_gives_is_no_option_whatever_its_name():
    assert make("codecs", "Planned", {"level": 4}, "e", 64, 0) == {
        "level": 4,
        "given": ("e", 64, 0),
    }
    for wrong in ("spectrum", "nbytes", "energies"):
        with pytest.raises(InputError, match=f"codec 'Planned' has no option '{wrong}'"):
            make("codecs", "Planned", {wrong: 1}, "e", 64, 0)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("Base", {"dept": 1}, "no option 'dept'; did you mean 'depth'[?] it knows: depth, ratio"),
        ("Base", {"zzz": 1}, "readout 'Base' has no option 'zzz'; it knows: depth, ratio"),
        ("HandsOn", {"kind": "wide", "rati": 1.0}, "did you mean 'ratio'[?] it knows: kind, depth"),
        ("HandsOn", {}, "readout 'HandsOn' needs kind; it knows: kind, depth, ratio"),
        ("HandsOn", {"kind": "deep"}, "kind must be 'wide' or 'long', not 'deep'"),
        ("Base", {"depth": "3"}, "depth must be a whole number, not '3'"),
        ("Base", {"depth": True}, "depth must be a whole number, not True"),
        ("Base", {"depth": None}, "depth must be a whole number, not None"),
        ("Base", {"ratio": "3"}, "ratio must be a number, not '3'"),
    ],
)
def test_what_a_signature_does_not_take_is_refused_with_what_it_does(name, table, message):
    with pytest.raises(InputError, match=message):
        checked("readouts", name, table)


def test_a_member_that_takes_anything_is_given_anything():
    assert make("readouts", "TakesAny", {"x": 1}).anything == {"x": 1}
    with pytest.raises(InputError, match="no option 'root'"):
        checked("data", "TakesAny", {"root": 1})


def test_an_annotation_that_cannot_be_resolved_leaves_the_value_to_the_member():
    checked("readouts", "Untyped", {"weight": "anything"})
    with pytest.raises(InputError, match="did you mean 'weight'"):
        checked("readouts", "Untyped", {"weigth": 1})


@pytest.mark.parametrize(("family", "name"), OWN)
def test_every_member_refuses_what_it_does_not_know_and_says_what_it_does(family, name):
    with pytest.raises(InputError, match=f"'{name}' has no option 'no_such_option'; .*it knows: "):
        checked(family, name, {"no_such_option": 1})


def job(**tables):
    base = {"task": "task.py", "checkpoints": ["m.pt"], "train": {"reader": "arrays", "path": "x"}}
    return parse_job({**base, **tables}, Path())


def test_a_table_asks_for_its_readout_and_gives_its_options():
    found = job(readouts={"top_k": {"k": 7}, "mine": {"x": 3}}, score={"readouts": ["dense"]})
    wanted = {"dense": {}, "top_k": {"k": 7}, "mine": {"x": 3}}
    assert readout_options(found.score, found.readouts) == wanted


@pytest.mark.parametrize("tables", [{"readouts": 3}, {"readouts": {"top_k": 3}}])
def test_what_is_no_table_of_options_is_refused_by_its_key(tables):
    with pytest.raises(InputError, match=r"readouts\S* must be a table, got 3"):
        job(**tables)


def test_short_forms_are_the_options_that_they_stand_for():
    score = Score(("top_k", "self_influence", "subset_sum", "dense"), top_k=5, subsets="m.npy")
    assert readout_options(score, {"top_k": {"k": 5}}) == {
        "top_k": {"k": 5},
        "self_influence": {"k": 5},
        "subset_sum": {"subsets": "m.npy"},
        "dense": {},
    }
    assert codec_options(Rows(codec="bands", width=64, bits=4)) == {"width": 64, "bits": 4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: readout_options(Score(top_k=5), {"self_influence": {"k": 6}}),
            "score.top_k = 5 is short for readouts.self_influence.k, which is 6",
        ),
        (
            lambda: readout_options(Score(subsets="a"), {"subset_sum": {"subsets": "b"}}),
            "score.subsets = 'a' is short for readouts.subset_sum.subsets, which is 'b'",
        ),
        (
            lambda: codec_options(Rows(codec="bands", width=8, options={"width": 9})),
            "rows.width = 8 is short for rows.options.width, which is 9",
        ),
        (
            lambda: codec_options(Rows(codec="int8", bits=2)),
            "rows.bits belongs to .*'bands'.*'int8'",
        ),
    ],
)
def test_a_short_form_that_contradicts_a_table_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_short_form_and_the_option_it_stands_for_make_the_same_run():
    short, long = (
        job(rows={"width": 64, "bits": 4}),
        job(rows={"options": {"width": 64, "bits": 4}}),
    )
    assert decisive(short)["rows"] == decisive(long)["rows"]
    assert decisive(short)["rows"]["options"] == {"width": 64, "bits": 4}
