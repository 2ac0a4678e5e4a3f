"""A sketch taken over from another run: the same numbers with less work, or no reuse at all."""

import numpy as np
import pytest
from small_job import write_job

import streamfluence
from streamfluence.job_parser import load_job
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.sketching import units as _sketch_tasks
from streamfluence.sketching.reuse import reuse_sketch
from streamfluence.stages.run import run

JOINT = {"curvature.blocks": "joint", "rows.bytes": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reuse")
    write_job(path)
    run(path / "job.toml", str(path / "source"), JOINT)
    return path


def taken_over(folder, name, changes):
    target = open_run(load_job(folder / "job.toml", JOINT | changes), str(folder / name))
    return reuse_sketch(OpenRun.open(str(folder / "source")), target)


@pytest.mark.parametrize(
    "changes, again",
    [
        ({"rows.bytes": 24}, set()),
        ({"rows.codec": "int8"}, set()),
        ({"curvature.damping": 0.3}, {"gram"}),  # which the directions depend on
    ],
)
def test_runs_that_differ_after_the_sums_share_them_and_score_as_alone(
    folder, monkeypatch, changes, again
):
    (name,) = changes
    run(folder / "job.toml", str(folder / f"alone-{name}"), JOINT | changes)
    assert taken_over(folder, f"shared-{name}", changes)
    seen = []
    accumulate = _sketch_tasks.accumulate

    def watched(at, task, stage, *rest, **options):
        seen.append(stage)
        accumulate(at, task, stage, *rest, **options)

    monkeypatch.setattr(_sketch_tasks, "accumulate", watched)
    run(folder / "job.toml", str(folder / f"shared-{name}"), JOINT | changes)
    assert set(seen) == again, "a pass over the sample was made again"
    alone, shared, source = (
        streamfluence.open(str(folder / which)).scores().compute()
        for which in (f"alone-{name}", f"shared-{name}", "source")
    )
    np.testing.assert_array_equal(shared, alone)
    assert not np.array_equal(shared, source)


@pytest.mark.parametrize(
    "changes",
    [
        {"projection.width": 7},
        {"curvature.name": "fisher"},
        {"curvature.blocks": "layer"},
        {"sketch.examples": 40},
        {"sketch.probes": 2},
        {"sketch.seed": 5},
        {"compute.batch_size": 8},
    ],
)
def test_runs_whose_sums_differ_share_nothing(folder, changes):
    (name,) = changes
    assert not taken_over(folder, f"apart-{name}", changes)
    assert OpenRun.open(str(folder / f"apart-{name}")).stages() == []


def test_another_source_of_a_diagonal_shares_nothing(folder):
    runs = [
        open_run(
            load_job(
                folder / "job.toml",
                {"curvature.name": "diagonal", "curvature.options": {"source": source}},
            ),
            str(folder / f"diagonal-{source}"),
        )
        for source in ("probes", "loss")
    ]
    assert reuse_sketch(runs[0], runs[0]) and not reuse_sketch(*runs)


ADAM = {"optimizer": "adam", "learning_rate": 0.02, "steps": 150, "batch_size": 150}


@pytest.mark.parametrize(
    "changes, share",
    [
        ({"damping": 0.3}, True),
        ({"damping": "auto"}, True),
        ({"steps": 10}, False),
        ({"weight_decay": 0.01}, False),
        ({"optimizer": "sgd"}, False),
    ],
)
def test_a_damping_by_weight_decides_the_coordinates_of_the_sums(folder, changes, share):
    name = f"adam-{next(iter(changes))}-{share}-{changes.get('damping')}"
    common = JOINT | {f"curvature.{key}": value for key, value in ADAM.items()}
    changed = common | {f"curvature.{key}": value for key, value in changes.items()}
    if not (folder / "adam").exists():
        run(folder / "job.toml", str(folder / "adam"), common)
    target = open_run(load_job(folder / "job.toml", changed), str(folder / name))
    assert reuse_sketch(OpenRun.open(str(folder / "adam")), target) == share


def test_other_data_share_nothing(folder):
    write_job(folder / "other", seed=9)
    target = open_run(load_job(folder / "other" / "job.toml", JOINT), str(folder / "other-run"))
    assert not reuse_sketch(OpenRun.open(str(folder / "source")), target)
