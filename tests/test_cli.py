"""The command line: what reaches a stage, what comes out, and the exit code of every ending.

Stages are small functions of this file here; the real ones run in the end-to-end tests.
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import types

import psutil
import pytest
from click.testing import CliRunner
from patience import FOREVER, HANG_SECONDS, wait_until

from streamfluence import errors
from streamfluence.budget import size
from streamfluence.cli import _interrupts, main
from streamfluence.cli._progress import LogProgress
from streamfluence.cli._show import lines
from streamfluence.cli._units import duration

COMMANDS = ["init", "plan", "run", "sketch", "collect", "score", "top", "status"]
COMMANDS += ["verify", "repair", "relocate", "finalise", "export"]


@pytest.fixture
def stage(monkeypatch):
    """Return a function that puts another in a stage's place and gives the list of its calls."""

    def replace(name, function=lambda *args, **options: {"done": True}):
        calls = []

        def called(*args, **options):
            calls.append((args, options))
            return function(*args, **options)

        module = types.ModuleType(f"streamfluence.stages.{name}")
        setattr(module, name, called)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return calls

    return replace


@pytest.fixture
def execution(monkeypatch):
    """A stand-in for the library's Execution that needs no torch: the options as a dict."""
    module = types.ModuleType("streamfluence.execution")
    module.Execution = type("Execution", (dict,), {"check": lambda self: None})
    monkeypatch.setitem(sys.modules, module.__name__, module)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def failing(error):
    def raise_it(*args, **options):
        raise error

    return raise_it


def test_the_commands_are_these_in_the_order_of_the_work():
    assert list(main.commands) == [*COMMANDS, "evaluate", "guide"]


@pytest.mark.parametrize("command", [*COMMANDS, "guide"])
def test_every_command_has_help_and_json(command):
    shown = invoke(command, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout


def test_no_line_of_the_command_list_is_cut():
    shown = invoke("--help").stdout
    assert "..." not in shown.partition("Commands:")[2]


def test_options_of_run_become_overrides_by_the_keys_of_the_job(stage, tmp_path):
    calls = stage("run")
    result = invoke(
        *("run", tmp_path / "job.toml", "--memory", "4GiB", "--device", "cpu", "--workers", 3),
        *("--precision", "bf16", "--bytes", 512, "--damping", "1e-3", "--executor", "dask"),
        *("--dask", "tcp://127.0.0.1:1", "--set", "sketch.examples=8192"),
        *("--set", "rows.codec=int8", "--set", 'model.exclude=["head.*", "x"]'),
    )
    assert result.exit_code == 0, result.output
    (args, options) = calls[0]
    assert args == (tmp_path / "job.toml", str(tmp_path / "run"))
    assert options["overrides"] == {
        "compute.memory": "4GiB",
        "compute.device": "cpu",
        "compute.workers": 3,
        "compute.precision": "bf16",
        "rows.bytes": 512,
        "curvature.damping": 1e-3,
        "compute.executor": "dask",
        "compute.dask": "tcp://127.0.0.1:1",
        "sketch.examples": 8192,
        "rows.codec": "int8",
        "model.exclude": ["head.*", "x"],
    }


def test_what_is_not_given_is_not_overridden(stage):
    calls = stage("plan")
    assert invoke("plan", "a/job.toml", "s3://bucket/run").exit_code == 0
    (args, options) = calls[0]
    assert (str(args[0]), args[1], options) == (
        "a/job.toml",
        "s3://bucket/run",
        {"overrides": {}},
    )


def test_set_wins_over_an_option_of_its_own(stage):
    calls = stage("plan")
    invoke("plan", "job.toml", "--set", "rows.bytes=64", "--bytes", 512)
    assert calls[0][1]["overrides"] == {"rows.bytes": 64}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", 1.5),
        ("true", True),
        ('"7"', "7"),
        ("a=b", "a=b"),
        ("{x = 1}", {"x": 1}),
        ("1\nother = 2", "1\nother = 2"),
    ],
)
def test_a_set_value_is_toml_or_else_a_string(stage, text, value):
    calls = stage("plan")
    invoke("plan", "job.toml", "--set", f"a.b={text}")
    assert calls[0][1]["overrides"] == {"a.b": value}


def test_collect_hands_over_what_a_cluster_script_says(stage, execution):
    calls = stage("collect")
    result = invoke(
        *("collect", "RUN", "--worker", "2/8", "--example-set", "train", "--example-set", "held"),
        *("--memory", "2GiB", "--device", "cuda:1"),
    )
    assert result.exit_code == 0, result.output
    args, options = calls[0]
    assert args == ("RUN",)
    assert options.pop("progress") is not None
    assert options == {
        "example_sets": ["train", "held"],
        "worker": (2, 8),
        "partition": None,
        "execution": {"memory": 2 * 2**30, "device": "cuda:1"},
    }


def test_score_and_top_and_export_hand_over_what_is_asked(stage, execution):
    scored, ranked, exported = stage("score"), stage("top"), stage("export")
    invoke(
        "score", "RUN", "--damping", "0.5", "--readout", "dense", "--queries", "a", "--name", "n"
    )
    invoke("top", "RUN", "a/3", "-k", 5, "--negative")
    invoke("export", "RUN", "out.jsonl")
    assert scored[0][1]["damping"] == 0.5
    assert scored[0][0] == ("RUN", ["a"]) and list(scored[0][1]["asked"].readouts) == ["dense"]
    assert ranked[0] == (
        ("RUN", "a/3"),
        {"k": 5, "positive": False, "negative": True, "name": None},
    )
    assert exported[0] == (("RUN", "out.jsonl"), {"format": None, "name": None})


@pytest.mark.parametrize(
    ("flags", "positive", "negative"),
    [
        ([], True, True),
        (["--positive"], True, False),
        (["--negative"], False, True),
        (["--positive", "--negative"], True, True),
    ],
)
def test_top_lists_both_sides_unless_one_is_asked_for(stage, flags, positive, negative):
    calls = stage("top")
    invoke("top", "RUN", "3", *flags)
    assert calls[0][1]["positive"] == positive and calls[0][1]["negative"] == negative


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense",
        "run",
        "run job.toml RUN more",
        "run job.toml --workers 0",
        "run job.toml --bytes -1",
        "run job.toml --set rows.bytes",
        "run job.toml --set .=1",
        "collect RUN --worker 4/4",
        "collect RUN --worker 1",
        "collect RUN --worker -1/4",
        "collect RUN --partition -1",
        "collect RUN --partition 0 --worker 0/2",
        "top RUN",
        "top RUN 1 -k 0",
        "verify RUN --fraction 0",
        "verify RUN --fraction 0.5 --full",
        "export RUN",
    ],
)
def test_wrong_usage_ends_with_2_and_calls_no_stage(stage, arguments):
    calls = [stage(command) for command in COMMANDS]
    result = invoke(*arguments.split())
    assert result.exit_code == 2
    assert "Error: " in result.stderr and result.stdout == ""
    assert not any(calls)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError, 2),
        (errors.BudgetError, 2),
        (errors.CoverageError, 2),
        (errors.DamageError, 3),
        (errors.IncompleteError, 4),
        (errors.NonFiniteError, 5),
        (errors.StorageError, 74),
        (errors.Interrupted, 75),
    ],
)
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_an_error_of_ours_is_one_sentence_and_its_exit_code(stage, error, code, as_json):
    stage("status", failing(error("shard 3 is short; run repair")))
    result = invoke("status", "RUN", *as_json)
    assert result.exit_code == code
    assert result.stderr == "error: shard 3 is short; run repair\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    "error", [ValueError("x"), BrokenPipeError(), OSError(5, "y"), KeyError(1)]
)
def test_any_other_error_shows_its_traceback_and_ends_with_1(stage, error):
    stage("status", failing(error))
    result = invoke("status", "RUN")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "raise_it" in result.stderr
    assert result.stderr.endswith("error: this is a bug in streamfluence; please report it\n")


def test_json_is_what_the_stage_returned_with_null_for_nan(stage):
    stage("status", lambda run: {"a": [1, {"b": float("nan")}], "c": float("inf"), "d": 0.1})
    result = invoke("status", "RUN", "--json")
    assert json.loads(result.stdout) == {"a": [1, {"b": None}], "c": None, "d": 0.1}
    assert result.stderr == ""


def test_a_result_is_shown_as_values_then_sections_then_columns():
    result = {
        "rows": [
            {"rank": 1, "score": 0.000123456, "preview": "a\nb"},
            {"rank": 20, "score": -2.0, "preview": None},
        ],
        "disk_bytes": 3 * 2**20,
        "expected_seconds": 3723.0,
        "complete": False,
        "missing": [],
        "checkpoints": {"n_examples": 12345},
    }
    assert list(lines(result)) == [
        "disk      3 MiB",
        "expected  1:02:03",
        "complete  no",
        "missing   none",
        "",
        "rows:",
        "rank      score  preview",
        "   1  0.0001235  a b",
        "  20         -2  -",
        "",
        "checkpoints:",
        "n examples  12,345",
    ]


def test_numbers_are_written_for_people():
    assert [size(n) for n in (0, 1023, 1024, 1.5 * 2**30, 2**50)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 GiB",
        "1024 TiB",
    ]
    assert [duration(s) for s in (0.5, 59.9, 60, 3599.7)] == ["0.5 s", "59.9 s", "1:00", "1:00:00"]


def test_a_log_gets_a_line_at_the_start_and_at_the_end_of_a_stage():
    clock = iter([0.0, 0.0, 60.0])
    stream = io.StringIO()
    with LogProgress(stream, clock=lambda: next(clock)) as progress:
        progress.start("collect", 4, "partitions")
        progress.advance(3)
    assert stream.getvalue().splitlines() == [
        "collect: 0 of 4 partitions",
        "collect: 3 of 4 partitions in 1:00 (75 %), about 20 s left",
    ]


def test_a_log_gets_lines_while_nothing_advances_and_none_after_the_end():
    stream = io.StringIO()
    progress = LogProgress(stream, clock=lambda: 0.0, seconds=0.01)
    before = set(threading.enumerate())
    progress.start("sketch", None, "batches")
    (writer,) = set(threading.enumerate()) - before
    wait_until(lambda: stream.getvalue().count("\n") >= 4)
    progress.finish()
    writer.join(HANG_SECONDS)
    assert not writer.is_alive()  # nobody is left who could write a line
    assert set(stream.getvalue().splitlines()) == {"sketch: 0 batches"}


def test_progress_goes_to_stderr_and_results_to_stdout(stage):
    def work(job, run, overrides, progress):
        progress.start("collect", 1, "partitions")
        progress.advance(1)
        progress.message("one row was not finite")
        progress.finish()
        return {"rows": 5}

    stage("run", work)
    result = invoke("run", "job.toml", "--json")
    assert json.loads(result.stdout) == {"rows": 5}
    assert result.stderr.splitlines() == [
        "collect: 0 of 1 partitions",
        "one row was not finite",
        "collect: 1 of 1 partitions",
    ]


PROGRAM = """
import hashlib, multiprocessing, os, signal, sys, threading, time, types
from streamfluence.cli import main, _interrupts
from streamfluence.errors import Interrupted

def status(run):
    {body}

module = types.ModuleType("streamfluence.stages.status")
module.status = status
sys.modules[module.__name__] = module
_interrupts.GRACE_SECONDS = {grace}
main(["status", "RUN"])
"""


def run_program(body, grace=8.0, signals=(), **options):
    """Run ``status`` with this body in a process of its own; each signal waits for a ``ready``."""
    script = PROGRAM.format(body="\n    ".join(body), grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options,
    )
    for number in signals:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    stdout, stderr = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, stdout, stderr


# Whatever sleeps here sleeps for days: that a command ends at all shows that the signal ended it.
READY = "print('ready', flush=True)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_with_75_and_says_that_it_can_go_on(number):
    code, _, stderr = run_program([READY, f"time.sleep({FOREVER})"], signals=[number])
    assert code == 75
    assert stderr == (
        f"error: stopped by {number.name}: what was committed is safe; "
        "run the same command again to go on\n"
    )


def test_a_signal_during_a_long_call_into_c_still_ends_the_command():
    # Ready is said once the call has computed for a while: a signal before it would be an ordinary
    # one. Only the main thread computes, so what the process uses is what the call used.
    body = [
        "def watch(before):",
        "    while time.process_time() < before + 0.5:",
        "        time.sleep(0.05)",
        f"    {READY}",
        "threading.Thread(target=watch, args=(time.process_time(),), daemon=True).start()",
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    ]
    code, _, stderr = run_program(body, grace=0.2, signals=[signal.SIGTERM])
    assert code == 75
    assert "stopped at once" in stderr


SWALLOW = [
    "try:",
    f"    {READY}; time.sleep({FOREVER})",
    "except Interrupted:",
    f"    {READY}; time.sleep({FOREVER})",
]


def test_a_stage_that_does_not_unwind_is_ended_with_its_child_processes():
    body = [
        "spawn = multiprocessing.get_context('spawn')",
        f"child = spawn.Process(target=time.sleep, args=({FOREVER},))",
        "child.start(); print(child.pid, file=sys.stderr, flush=True)",
        *SWALLOW,
    ]
    code, _, stderr = run_program(body, grace=0.2, signals=[signal.SIGTERM])
    assert code == 75
    child = int(stderr.split()[0])
    assert is_gone(child)


def test_a_second_signal_ends_a_command_at_once():
    both = [signal.SIGINT, signal.SIGINT]
    code, _, _ = run_program(SWALLOW, grace=float(FOREVER), signals=both)
    assert code == 75


def test_two_signals_that_are_read_at_once_count_as_two():
    reader, writer = os.pipe()
    os.write(writer, bytes([signal.SIGINT, signal.SIGCHLD, signal.SIGINT]))
    assert _interrupts._signals(reader, None) == 2
    os.close(writer)
    assert _interrupts._signals(reader, None) == 0
    os.close(reader)


def is_gone(pid):
    """Wait for the end of a process that is not ours, and return whether it came."""
    try:
        process = psutil.Process(pid)
        process.wait(timeout=HANG_SECONDS)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_handlers_are_those_of_before_once_a_command_is_done(stage):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stage("status")
    invoke("status", "RUN")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_reader_that_has_gone_is_no_error():
    gone = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    gone.wait()
    body = ["return {'rows': [{'text': 'x' * 100}] * 10_000}"]
    code, _, stderr = run_program(body, stdout=gone.stdin)
    gone.stdin.close()
    assert (code, stderr) == (0, "")
