"""Bad input: one clear sentence, the documented exit code, and nothing committed is lost."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from patience import FOREVER, HANG_SECONDS, wait_until
from small_job import JOB, TASK, write_job

from streamfluence.cli import main
from streamfluence.run import session as _session
from streamfluence.run.opened import OpenRun
from streamfluence.store.documents import seal


@pytest.fixture
def folder(tmp_path):
    write_job(tmp_path, n=80)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def run_job(folder, *arguments):
    return invoke("run", folder / "job.toml", *arguments)


def refused(result, code, *words):
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0], errors[0]


def rewrite(folder, name, **changes):
    """Write one shard again with some fields changed (None removes a field)."""
    fields = dict(np.load(folder / name))
    fields.update({key: value for key, value in changes.items() if value is not None})
    for key in [key for key, value in changes.items() if value is None]:
        del fields[key]
    np.savez(folder / name, **fields)


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_a_missing_job_is_a_usage_error(tmp_path):
    assert invoke("run", tmp_path / "none.toml").exit_code == 2


def test_a_glob_that_matches_no_shard_is_refused(folder):
    edit(folder, "job.toml", "train-*.npz", "nothing-*.npz")
    refused(run_job(folder), 2, "nothing-*.npz")


def test_a_truncated_shard_is_refused_by_name(folder):
    shard = folder / "train-1.npz"
    shard.write_bytes(shard.read_bytes()[:200])
    refused(run_job(folder), 2, "train-1.npz")


def test_a_shard_with_other_fields_is_refused_by_name(folder):
    rewrite(folder, "train-1.npz", y=None, z=np.zeros(54))
    refused(run_job(folder), 2, "train-1.npz")


def test_a_shard_with_other_shapes_is_refused_by_name(folder):
    rewrite(folder, "train-1.npz", x=np.zeros((54, 9), np.float32))
    refused(run_job(folder), 2, "train-1.npz", "9")


def test_zero_examples_are_refused(folder):
    for name in ("train-0.npz", "train-1.npz"):
        rewrite(folder, name, x=np.zeros((0, 6), np.float32), y=np.zeros(0, np.int64))
    refused(run_job(folder), 2, "no examples")


def test_one_example_is_enough(tmp_path):
    write_job(tmp_path, n=80)
    rewrite(tmp_path, "train-0.npz", x=np.zeros((0, 6), np.float32), y=np.zeros(0, np.int64))
    rewrite(tmp_path, "train-1.npz", x=np.ones((1, 6), np.float32), y=np.zeros(1, np.int64))
    assert run_job(tmp_path).exit_code == 0
    result = invoke("top", tmp_path / "run", "test/0", "--json")
    assert [row["row"] for row in json.loads(result.stdout)["helps"]] == [0]


def test_queries_of_another_shape_are_refused(folder):
    rewrite(folder, "test.npz", x=np.zeros((7, 4), np.float32))
    refused(run_job(folder), 2, "forward() failed")


def test_a_checkpoint_that_does_not_fit_is_refused(folder):
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "model.pt")
    refused(run_job(folder), 2, "model() failed")


def test_nan_weights_are_refused_by_name(folder):
    state = torch.load(folder / "model.pt", weights_only=True)
    state["2.weight"][0, 0] = float("nan")
    torch.save(state, folder / "model.pt")
    refused(run_job(folder), 2, "2.weight")


def test_a_model_in_training_mode_is_refused(folder):
    edit(folder, "task.py", "return module.eval()", "return module.train()")
    refused(run_job(folder), 2, "eval()")


def test_a_likelihood_that_does_not_fit_the_outputs_is_refused(folder):
    edit(folder, "task.py", '"categorical"', '"gaussian"')
    refused(run_job(folder), 2, "gaussian", "(2, 3)", "(2,)")


def test_few_nan_examples_are_quarantined_and_counted_and_many_end_with_5(folder):
    x = np.load(folder / "train-1.npz")["x"].copy()
    x[3, 0] = np.nan
    rewrite(folder, "train-1.npz", x=x)
    refused(run_job(folder), 5, "1 of 80 rows")
    assert run_job(folder, folder / "tolerant", "--set", "rows.max_non_finite=0.1").exit_code == 0
    found = json.loads(invoke("top", folder / "tolerant", "test/0", "-k", 79, "--json").stdout)
    bad = np.load(folder / "train-0.npz")["x"].shape[0] + 3
    assert bad not in [row["row"] for row in found["helps"]]
    assert len(found["helps"]) == 79
    assert found["record"]["non_finite_examples"] == 1


def test_nan_queries_are_refused(folder):
    x = np.load(folder / "test.npz")["x"].copy()
    x[2] = np.inf
    rewrite(folder, "test.npz", x=x)
    refused(run_job(folder), 5)


def committed_rows(folder):
    store = OpenRun.open(str(folder / "run"))
    return {
        p: store.read(r, "rows").tobytes() for p, r in store.receipts("collect/train/0").items()
    }


def test_changed_data_under_a_run_is_refused_and_costs_nothing(folder):
    assert run_job(folder).exit_code == 0
    before = committed_rows(folder)
    x = np.load(folder / "train-0.npz")["x"].copy()
    x[0, 0] += 1
    rewrite(folder, "train-0.npz", x=x)
    refused(run_job(folder), 2, "train")
    assert committed_rows(folder) == before


def test_a_job_that_contradicts_the_manifest_is_refused_with_the_key(folder):
    assert run_job(folder).exit_code == 0
    before = committed_rows(folder)
    refused(run_job(folder, "--bytes", "128"), 2, "rows.bytes", "256", "128")
    assert committed_rows(folder) == before


def test_a_changed_task_under_a_run_is_refused(folder):
    assert run_job(folder).exit_code == 0
    (folder / "task.py").write_text(TASK + "\nANOTHER = 1\n")
    refused(run_job(folder), 2, "task")
    _session._session.cache_clear()  # as a new process would be
    refused(invoke("collect", folder / "run"), 2, "task")


def objects(folder, partition):
    """The stored rows object of one partition."""
    store = OpenRun.open(str(folder / "run"))
    receipt = store.receipt("collect/train/0", partition)
    return [
        folder / "run" / receipt.path / name
        for name in receipt.objects
        if name.startswith("rows/") and not name.endswith("zarr.json")
    ]


def test_a_flipped_bit_is_found_named_and_repaired(folder):
    assert run_job(folder).exit_code == 0
    before = committed_rows(folder)
    (shard,) = objects(folder, 1)
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    refused(invoke("verify", folder / "run", "--full"), 3, "collect/train/0", "partition 1")
    refused(invoke("score", folder / "run", "--name", "again"), 3, "partition 1")
    assert invoke("repair", folder / "run").exit_code == 0
    refused(
        invoke("verify", folder / "run", "--full"), 4, "scores/again"
    )  # asked for, not made yet
    assert invoke("score", folder / "run", "--name", "again").exit_code == 0
    assert invoke("verify", folder / "run", "--full").exit_code == 0
    assert committed_rows(folder) == before


def test_two_swapped_shards_are_found(folder):
    assert run_job(folder).exit_code == 0
    (one,), (other,) = objects(folder, 0), objects(folder, 1)
    first, second = one.read_bytes(), other.read_bytes()
    for path, data in ((one, second), (other, first)):
        path.chmod(0o644)
        path.write_bytes(data)
    refused(invoke("score", folder / "run", "--name", "again"), 3)
    assert invoke("repair", folder / "run").exit_code == 0
    assert invoke("score", folder / "run", "--name", "again").exit_code == 0


def test_an_unknown_format_version_is_refused(folder):
    assert run_job(folder).exit_code == 0
    path = folder / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.chmod(0o644)
    del manifest["crc32c"]
    path.write_bytes(seal({**manifest, "format_version": 99}))
    for command in (["status"], ["top"], ["verify"]):
        arguments = [*command, folder / "run", *(["0"] if command == ["top"] else [])]
        refused(invoke(*arguments), 2, "99")


def test_missing_partitions_are_listed_with_exit_4(folder):
    assert run_job(folder).exit_code == 0
    OpenRun.open(str(folder / "run")).discard("collect/train/0", 1)
    refused(invoke("score", folder / "run", "--name", "again"), 4, "1 of 3", "(1)")
    status = json.loads(invoke("status", folder / "run", "--json").stdout)
    assert status["sets"][0]["missing"] == [1]
    assert run_job(folder).exit_code == 0


def test_rows_before_a_sketch_are_refused_with_exit_4(folder):
    from streamfluence.job_parser import load_job
    from streamfluence.run.resolve import open_run

    open_run(load_job(folder / "job.toml"), str(folder / "run"))
    refused(invoke("collect", folder / "run"), 4, "streamfluence sketch")


def test_a_query_that_does_not_exist_is_refused(folder):
    assert run_job(folder).exit_code == 0
    refused(invoke("top", folder / "run", "test/7"), 2, "0 to 6")
    refused(invoke("top", folder / "run", "nope/0"), 2, "test")
    refused(invoke("top", folder / "run", "first"), 2, "INDEX")


def command(folder, *arguments):
    return [sys.executable, "-m", "streamfluence", "run", str(folder / "job.toml"), *arguments]


def test_a_full_disk_ends_with_74_and_the_next_run_finishes(folder):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # noqa: E731
    told = subprocess.run(command(folder), preexec_fn=limit, capture_output=True, text=True)
    assert told.returncode == 74, told.stderr
    assert "Traceback" not in told.stderr
    assert run_job(folder).exit_code == 0


SCRIPT = """
mount -t tmpfs -o size={size}k tmpfs "$DISK" || exit 99
"$@" "$DISK/run"; first=$?
mount -o remount,size=64m "$DISK"
"$@" "$DISK/run" || exit 98
cp -r "$DISK/run" "$COPY"
exit $first
"""


@pytest.mark.parametrize("size", [300, 700])
def test_a_disk_that_is_really_full_ends_with_74_and_the_next_run_finishes(folder, size):
    assert run_job(folder).exit_code == 0
    before = committed_rows(folder)
    (folder / "disk").mkdir()
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", SCRIPT.format(size=size), "sh"]
    places = {"DISK": str(folder / "disk"), "COPY": str(folder / "copy")}
    told = subprocess.run(
        [*inside, *command(folder)], env=os.environ | places, capture_output=True, text=True
    )
    if "unshare" in told.stderr or told.returncode == 99:
        pytest.skip(f"no file system can be mounted here: {told.stderr}")
    assert told.returncode == 74, told.stderr
    assert "the disk is full" in told.stderr and "Traceback" not in told.stderr
    shutil.rmtree(folder / "run")
    shutil.move(folder / "copy", folder / "run")
    assert committed_rows(folder) == before


def descendants(pid):
    """Return the processes below one, by their numbers."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed] + [n for child in listed for n in descendants(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("executor", ["serial", "processes", "dask"])
def test_sigterm_ends_with_75_and_leaves_no_process(tmp_path, executor):
    """A forward pass that says that it has begun and never ends, so that only the signal ends it."""
    stuck = f"open({str(tmp_path / 'begun')!r}, 'w').close(); import time; time.sleep({FOREVER})"
    write_job(tmp_path, n=300, job=JOB)
    text = TASK.replace("return module(batch", f"{stuck}; return module(batch")
    (tmp_path / "task.py").write_text(text)
    with subprocess.Popen(
        command(tmp_path, "--executor", executor), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until((tmp_path / "begun").exists, process)
        below = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=HANG_SECONDS)[1]
    assert process.returncode == 75, told
    assert "Traceback" not in told
    wait_until(lambda: not any(alive(pid) for pid in below))


def test_scores_of_incomplete_rows_must_be_asked_for_and_say_so(folder):
    assert run_job(folder).exit_code == 0
    OpenRun.open(str(folder / "run")).discard("collect/train/0", 1)
    assert invoke("score", folder / "run", "--name", "part", "--allow-incomplete").exit_code == 0
    record = json.loads(invoke("top", folder / "run", "part/0", "--json").stdout)["record"]
    assert record["missing_partitions"] == [1] and record["examples"] == 80 - 32


@pytest.mark.parametrize("query", ["--1", "²", "test/", "1.5", "test/x"])
def test_a_query_that_is_no_number_is_refused(folder, query):
    assert run_job(folder).exit_code == 0
    refused(invoke("top", folder / "run", "--", query), 2, "INDEX")


@pytest.mark.parametrize("name", ["sketch", "collect", "score", "repair"])
def test_what_cannot_execute_anything_is_refused_by_every_command(folder, name):
    assert run_job(folder).exit_code == 0
    refused(invoke(name, folder / "run", "--memory", "12xx"), 2, "12xx", "4GiB")
    refused(invoke(name, folder / "run", "--executor", "slurm"), 2, "slurm", "serial")
    refused(invoke(name, folder / "run", "--device", "meta"), 2, "meta", "cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rows.codec", "nope"),
        ("rows.compressor", "nope"),
        ("projection.name", "nope"),
        ("curvature.name", "nope"),
        ("score.readouts", "nope"),
        ("queries.test.measurement", "nope"),
        ("compute.executor", "nope"),
        ("compute.device", "meta"),
        ("curvature.damping", "nan"),
        ("curvature.weight_decay", "-1.0"),
        ("rows.max_non_finite", "2.0"),
        ("checkpoint_weights", "[nan]"),
    ],
)
def test_a_job_that_can_never_work_is_refused_before_there_is_a_run(folder, key, value):
    refused(run_job(folder, "--set", f"{key}={value}"), 2, value.strip("[]"))
    assert not (folder / "run" / "manifest.json").exists()


def test_a_run_without_any_result_gives_way_to_the_corrected_task(folder):
    edit(folder, "task.py", "return module.eval()", "return module.train()")
    refused(run_job(folder), 2, "eval()")
    edit(folder, "task.py", "return module.train()", "return module.eval()")
    assert run_job(folder).exit_code == 0
    edit(folder, "task.py", "return module.eval()", "return module.to('cpu').eval()")
    refused(run_job(folder), 2, "holds another run", "task_digest")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x" * 101])
def test_a_name_that_is_no_folder_name_is_refused(folder, name):
    assert run_job(folder).exit_code == 0
    refused(invoke("score", folder / "run", "--name", name), 2, "--name")
    assert invoke("status", folder / "run").exit_code == 0


def test_scores_that_cannot_be_made_leave_no_trace(folder):
    assert run_job(folder).exit_code == 0
    for wrong in (["--readout", "nope"], ["--readout", "subset_sum", "--subsets", "nope.json"]):
        refused(invoke("score", folder / "run", "--name", "new", *wrong), 2, "nope")
    assert json.loads(invoke("status", folder / "run", "--json").stdout)["complete"]


@pytest.mark.parametrize("verb", ["run", "status", "collect"])
def test_a_run_whose_name_is_too_long_is_refused(folder, verb):
    run = folder / ("a" * 300)
    arguments = (folder / "job.toml", run) if verb == "run" else (run,)
    refused(
        CliRunner().invoke(main, [verb, *map(str, arguments)]), 2, "too long for its file system"
    )


def test_scores_of_one_name_with_other_settings_are_refused_with_the_setting(folder):
    assert run_job(folder).exit_code == 0
    refused(run_job(folder, "--set", "score.top_k=5"), 2, "top_k.k: stored 80, asked 5", "--name")


def test_top_lists_what_there_is_when_fewer_than_ten_were_kept(folder):
    assert run_job(folder, "--set", "score.top_k=3").exit_code == 0
    assert len(json.loads(invoke("top", folder / "run", "0", "--json").stdout)["helps"]) == 3
    refused(invoke("top", folder / "run", "0", "-k", "4"), 2, "kept 3")


@pytest.mark.parametrize("name", ["collect", "finalise"])
def test_an_example_set_that_does_not_exist_is_refused_with_those_that_do(folder, name):
    assert run_job(folder).exit_code == 0
    option = ["--example-set"] if name == "collect" else []
    refused(invoke(name, folder / "run", *option, "nope"), 2, "nope", "train, test")


def test_an_export_into_a_missing_folder_is_refused(folder):
    assert run_job(folder).exit_code == 0
    refused(invoke("export", folder / "run", folder / "none" / "x.csv"), 2, "does not exist")


def test_changed_bytes_are_found_though_size_and_modification_time_were_restored(folder):
    assert run_job(folder).exit_code == 0
    shard = folder / "train-0.npz"
    before, data = shard.stat(), bytearray(shard.read_bytes())
    place = data.index(np.load(shard)["x"][:2].tobytes())
    data[place] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shard.stat().st_size == before.st_size
    refused(run_job(folder), 2, "train")


def damage(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:40])


def test_a_damaged_manifest_is_made_again_by_the_same_job(folder):
    assert run_job(folder).exit_code == 0
    before = committed_rows(folder)
    damage(folder / "run" / "manifest.json")
    for name in ("status", "verify", "repair", "collect"):
        refused(invoke(name, folder / "run"), 3, "manifest.json", "remove it and repeat")
    (folder / "run" / "manifest.json").unlink()
    assert run_job(folder).exit_code == 0
    assert invoke("verify", folder / "run", "--full").exit_code == 0
    assert committed_rows(folder) == before


@pytest.mark.parametrize("name", ["data/test/000000.json", "scores/test/score.json"])
def test_a_damaged_document_is_named_and_made_again(folder, name):
    assert run_job(folder).exit_code == 0
    damage(folder / "run" / name)
    for command in ("verify", "repair"):
        refused(invoke(command, folder / "run"), 3, name, "remove it and repeat")
    (folder / "run" / name).unlink()
    assert run_job(folder).exit_code == 0
    assert json.loads(invoke("status", folder / "run", "--json").stdout)["complete"]


def test_a_damaged_identity_is_only_a_lost_shortcut(folder):
    assert run_job(folder).exit_code == 0
    for path in (folder / "run" / "identities").iterdir():
        damage(path)
    assert run_job(folder).exit_code == 0


def test_a_damaged_receipt_is_found_and_repaired(folder):
    assert run_job(folder).exit_code == 0
    before = committed_rows(folder)
    damage(folder / "run" / "receipts" / "collect" / "train" / "0" / "00000001.json")
    for name in ("status", "verify"):
        refused(invoke(name, folder / "run"), 3, "00000001.json", "repair")
    refused(run_job(folder), 3, "00000001.json", "repair")
    assert invoke("repair", folder / "run").exit_code == 0
    assert committed_rows(folder) == before
