"""A package with members of four families is installed, used by a job and held to the laws."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_SECONDS
from small_job import JOB, write_job

ROOT = Path(__file__).parent.parent
NAMES = ("exceeding", "few", "leading", "lines")
TABLES = """
[projection]
name = "leading"
width = 40
[projection.options]
scale = 2.0
[rows]
codec = "few"
bytes = 0
[rows.options]
most = 30
[score]
readouts = ["exceeding", "dense"]
[readouts.exceeding]
above = 1e-3
"""
DATA = '\n[train]\nreader = "lines"\npath = "train.csv"\nbetween = ";"\n'
DATA += '[queries.test]\nreader = "lines"\npath = "test.csv"\nbetween = ";"\n'


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the package was installed into, by pip and without a network."""
    pytest.importorskip("pip")
    pytest.importorskip("hatchling", reason="needs hatchling, which tools/dev.py installs")
    folder = tmp_path_factory.mktemp("plug-in")
    shutil.copytree(ROOT / "tests" / "plug_in", folder / "source")
    how = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target")
    pip = (sys.executable, "-m", "pip", "install", *how, folder / "target", folder / "source")
    subprocess.run(pip, check=True, timeout=HANG_SECONDS)
    return folder / "target"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("job")
    _, _, rest = JOB.partition("[curvature]")
    write_job(path, job=JOB.partition("[train]")[0] + DATA + "\n[curvature]" + rest + TABLES)
    parts = [np.load(shard) for shard in sorted(path.glob("train-*.npz"))]
    for name, arrays in (("train", parts), ("test", [np.load(path / "test.npz")])):
        table = np.concatenate([np.column_stack([each["x"], each["y"]]) for each in arrays])
        np.savetxt(path / f"{name}.csv", table, delimiter=";")
    return path


def called(installed, *arguments):
    path = os.pathsep.join(map(str, (installed, ROOT, ROOT / "tests")))
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        cwd=ROOT,
    )


def test_members_of_a_package_are_used_by_a_job_with_their_options(installed, folder):
    done = called(installed, "streamfluence", "run", folder / "job.toml", "--json")
    assert done.returncode == 0, done.stderr
    script = (
        "import json, streamfluence, sys\n"
        f"run = streamfluence.open({str(folder / 'run')!r})\n"
        "found = run.results()\n"
        "print(json.dumps({\n"
        "    'counts': found['exceeding.counts'].tolist(),\n"
        "    'scores': found['dense.scores'].compute().tolist(),\n"
        "    'width': run.rows('train').shape[1],\n"
        "    'manifest': run.manifest,\n"
        "}))\n"
    )
    (folder / "read.py").write_text(script)
    read = subprocess.run(
        [sys.executable, folder / "read.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (installed, ROOT)))},
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_SECONDS,
    )
    found = json.loads(read.stdout)
    scores = np.array(found["scores"])
    assert scores.shape == (150, 7) and found["width"] == 30
    assert found["counts"] == (scores > 1e-3).sum(0).tolist() and 0 < sum(found["counts"]) < 1050
    assert found["manifest"]["projection"]["options"] == {"scale": 2.0}
    assert found["manifest"]["rows"]["options"] == {"most": 30}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "readouts.exceeding.abov",
            "readout 'exceeding' has no option 'abov'; did you mean 'above'?",
        ),
        ("rows.options.mots", "codec 'few' has no option 'mots'; did you mean 'most'?"),
        ("projection.options.scal", "'leading' has no option 'scal'; did you mean 'scale'?"),
        ("curvature.options.x", "curvature 'gauss_newton' has no option 'x'; it knows: none"),
        ("train.betwen", "reader 'lines' has no option 'betwen'; did you mean 'between'?"),
    ],
)
def test_a_wrong_option_of_a_package_is_refused_with_the_nearest(installed, folder, key, message):
    other = folder / "other"
    done = called(
        installed, "streamfluence", "run", folder / "job.toml", other, "--set", f"{key}=1"
    )
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not other.exists()


def test_members_of_a_package_are_held_to_the_laws_of_their_families(installed):
    files = [f"tests/test_{family}.py" for family in ("readouts", "codecs", "projections")]
    chosen = ("-k", " or ".join(NAMES), "-m", "not gpu", "-p", "no:cacheprovider", "-q")
    done = called(installed, "pytest", *files, "tests/plug_in/laws_of_lines.py", *chosen)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert passed > 100, done.stdout[-3000:]


def test_the_guide_shows_members_of_a_package_with_their_options(installed):
    shown = called(installed, "streamfluence", "guide", "methods").stdout
    for name, option in (("exceeding", "above"), ("few", "most"), ("leading", "scale")):
        said = shown.partition(f"### `{name}`")[2].partition("\n### ")[0]
        assert "From the package `counting`." in said and f"| `{option}` |" in said
