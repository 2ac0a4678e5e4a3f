"""What is printed does nothing to a terminal; a reader that leaves is no error, a signal no traceback."""

import io
import json
import os
import signal
import subprocess
import sys
import types
import unicodedata

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamfluence.cli import main
from streamfluence.cli._clean import clean, say
from streamfluence.cli._progress import LogProgress
from streamfluence.cli._show import lines
from streamfluence.errors import InputError

EVIL = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[1;1H",
    "\x9b31m",
    "\x7f\b\b",
    "a\u202eb",
    "\u2066x\u2069",
    "\u200b\u200d\ufeff",
    "\U000e0041",
    "\ud800",
    "x\u2028y",
    "\rerror: nothing",
]


def active(text: str) -> set[str]:
    """Return the characters of a text, but for ends of lines, that a terminal acts on."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in kinds and c != "\n"}


@pytest.fixture
def stage(monkeypatch):
    """Return a function that puts one in the place of the stage ``status``."""

    def replace(function):
        module = types.ModuleType("streamfluence.stages.status")
        module.status = function
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return replace


def invoke(*arguments):
    return CliRunner().invoke(main, list(arguments))


@given(st.text())
def test_any_text_comes_out_as_one_line_in_which_nothing_acts(text):
    shown = clean(text)
    assert not active(shown) and "\n" not in shown
    assert clean(shown) == shown
    shown.encode()


@pytest.mark.parametrize("text", ["plain", "Zürich", "日本語", "π ≈ 3.14", "a\\x1b"])
def test_ordinary_text_of_any_language_stays_as_it_is(text):
    assert clean(text) == text


@pytest.mark.parametrize("text", EVIL)
def test_every_way_to_the_terminal_is_clean(stage, text):
    row = {"group": text, text: 1}
    stage(lambda run: {"name": text, text: {"inside": text}, "list": [text], "rows": [row, row]})
    shown = invoke("status", "RUN")
    assert shown.exit_code == 0 and not active(shown.stdout)
    as_json = invoke("status", "RUN", "--json")
    assert as_json.exit_code == 0 and as_json.stdout.isascii() and not active(as_json.stdout)
    assert json.loads(as_json.stdout)["name"] == text

    def refuse(run):
        raise InputError(f"no group {text}")

    def break_down(run):
        raise ValueError(text)

    for function, code in ((refuse, 2), (break_down, 1)):
        stage(function)
        told = invoke("status", "RUN")
        assert told.exit_code == code and "error: " in told.stderr and not active(told.stderr)
    stream = io.StringIO()
    with LogProgress(stream) as progress:
        progress.start(f"score {text}", 1, "tasks")
        progress.message(text)
    assert stream.getvalue() and not active(stream.getvalue())


@pytest.mark.parametrize("text", [t for t in EVIL if t != "\ud800"])
@pytest.mark.parametrize("words", [["{}"], ["status", "--{}"], ["verify", "r", "--seed", "{}"]])
def test_usage_errors_quote_what_was_given_without_its_controls(text, words):
    told = invoke(*(word.replace("{}", text) for word in words))
    assert told.exit_code == 2 and not active(told.output)


def test_an_error_stays_on_one_line(stage):
    def refuse(run):
        raise InputError("one\nerror: two")

    stage(refuse)
    assert invoke("status", "RUN").stderr == "error: one error: two\n"


def test_cells_of_a_table_are_aligned_by_what_is_shown():
    rows = [{"name": "\x1b", "n": 1}, {"name": "plain", "n": 2}]
    _, one, two = lines({"rows": rows})
    assert one.rindex("1") == two.rindex("2") and "\\x1b" in one


def test_a_stream_without_the_characters_gets_escapes():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    say("π", stream)
    assert stream.buffer.getvalue() == b"\\u03c0\n"


def program(*arguments, folder=None, **options):
    """Start the program; modules in ``folder`` come before all others."""
    paths = [str(folder or ""), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "streamfluence", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**streams, **options})


@pytest.fixture
def gone():
    """A pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["verify", "--help"], ["evaluate", "--help"]]
)
def test_help_whose_reader_has_gone_ends_quietly(gone, arguments):
    process = program(*arguments, stdout=gone)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, "")


def test_an_error_that_nobody_reads_keeps_its_exit_code(gone, tmp_path):
    process = program("status", str(tmp_path / "none"), stderr=gone)
    process.communicate(timeout=120)
    assert process.returncode == 2


@pytest.fixture
def full():
    """A file on a device that has no space left."""
    with open("/dev/full", "w") as stream:
        yield stream


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["verify", "--help"]])
def test_help_that_cannot_be_written_is_a_storage_error(full, arguments):
    process = program(*arguments, stdout=full)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 74
    assert stderr == "error: cannot write the result to stdout: No space left on device\n"


STAGE = "def status(run):\n    return {'rows': 5}\n"


@pytest.fixture
def staged(tmp_path):
    """Return a function that starts the program with a stage ``status`` that needs nothing."""

    def start(*arguments, **options):
        (tmp_path / "sitecustomize.py").write_text(
            "import sys, types\nmodule = types.ModuleType('streamfluence.stages.status')\n"
            f"exec({STAGE!r}, vars(module))\nsys.modules[module.__name__] = module\n"
        )
        return program(*arguments, folder=tmp_path, **options)

    return start


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_result_that_cannot_be_written_is_a_storage_error(staged, full, as_json):
    process = staged("status", "RUN", *as_json, stdout=full)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 74
    assert stderr == "error: cannot write the result to stdout: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["status", "RUN"], 0), (["top"], 2), (["--help"], 0), (["top", "none", "0"], 2)],
)
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_stream_that_is_closed_changes_no_exit_code(staged, tmp_path, arguments, code, closed):
    before = set(tmp_path.iterdir())
    process = staged(*arguments, preexec_fn=lambda: [os.close(number) for number in closed])
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in stdout + stderr
    assert {path.name for path in {*tmp_path.iterdir()} - before} <= {
        "sitecustomize.py",
        "__pycache__",
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["status", "RUN"], 0), (["top"], 2), ([], 2), (["top", "none", "0"], 2)],
)
def test_messages_that_cannot_be_written_change_no_exit_code(staged, full, arguments, code):
    process = staged(*arguments, stderr=full)
    process.communicate(timeout=120)
    assert process.returncode == code


def test_progress_that_nobody_reads_hinders_no_work():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    with LogProgress(Gone()) as progress:
        progress.start("collect", 2, "examples")
        progress.advance(2)
        progress.message("done")


SLOW = "import sys, time\nprint('ready', flush=True)\ntime.sleep(600)\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", ["click", "numpy"])
def test_a_signal_during_the_first_imports_ends_as_later_ones_do(tmp_path, number, module):
    """``click`` is imported before there are commands, numpy by the stage that is called first."""
    (tmp_path / f"{module}.py").write_text(SLOW)
    process = program("status", "RUN", folder=tmp_path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert stderr.startswith(f"error: stopped by {number.name}") and stderr.count("\n") == 1


CATCHES = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass
except BaseException:
    raise RecursionError("half made")
"""


@pytest.mark.parametrize("module", ["click", "numpy", "zarr"])
def test_a_signal_is_never_raised_into_an_import(tmp_path, module):
    (tmp_path / f"{module}.py").write_text(CATCHES)
    process = program("status", "RUN", folder=tmp_path)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert stderr.startswith("error: stopped by SIGTERM") and stderr.count("\n") == 1


def test_a_signal_that_is_ignored_on_purpose_stays_ignored(tmp_path):
    """``nohup`` and background jobs of a shell start programs deaf to some signals."""
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n1 / 0\n"
    )
    process = program(
        "status",
        "RUN",
        folder=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "ZeroDivisionError" in stderr
