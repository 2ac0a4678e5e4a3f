#!/usr/bin/env python3
"""Everything a developer runs, with nothing but Python and pip: demo, test, check, hooks, guide, bench.

Each command first makes sure that ``.venv`` holds what pyproject.toml and
tools/constraints.txt ask for; a stamp in it says which versions of the two
files it was made from. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "streamfluence.stamp"
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
BENCHMARKS = ROOT / "tools" / "bench"
DEMO = ROOT / "build" / "demo"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / "python"
PROGRAM = BIN / "streamfluence"
TEST_PROCESSES = 2
HOOK_SIGN = "# Installed by tools/dev.py hooks."
HOOK_COMMAND = "python3 tools/dev.py check --fast"


class Failed(Exception):
    """A command of ours ended with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> int:
    """Run one command and return its exit code."""
    arguments, extra = parser().parse_known_args()
    if extra and arguments.command not in ("test", "bench"):
        parser().error(f"unknown arguments: {' '.join(extra)}")
    os.chdir(ROOT)
    try:
        install()
        arguments.function(arguments, extra)
    except Failed as failure:
        return failure.code
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = top.add_subparsers(dest="command", required=True)
    for function, help_text in (
        (demo, "train a small net on real digits and trace its predictions to training examples"),
        (test, "run the tests; further arguments go to pytest"),
        (check, "format, lint, types, layers, tests: what has to pass before a commit"),
        (hooks, "have git run all of check but the tests before every commit"),
        (guide, "write the generated parts of streamfluence/guide/*.md"),
        (bench, "run tools/bench/NAME.py; further arguments go to it; no NAME lists them"),
    ):
        command = commands.add_parser(function.__name__, help=help_text)
        command.set_defaults(function=function)
        if function is check:
            command.add_argument("--fast", action="store_true", help="all but the tests")
        if function is bench:
            command.add_argument("names", nargs="*", metavar="NAME")
    return top


def demo(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Run the main job on the digits example, as a user would, in build/demo."""
    started = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.parent.mkdir(exist_ok=True)
    streamfluence("init", "--example", "digits", DEMO)
    run(PYTHON, "train.py", cwd=DEMO)
    streamfluence("run", DEMO / "job.toml", DEMO / "run")
    streamfluence("top", DEMO / "run", f"{first_query_set(DEMO / 'job.toml')}/0")
    say(f"demo finished in {time.monotonic() - started:.0f} s")
    say(f"the model, its data, the task and the job: {shown(DEMO)}")
    say(f"the run, rows and scores:                  {shown(DEMO / 'run')}")
    say(f"ask on: {shown(PROGRAM)} top {shown(DEMO / 'run')} --help")


def test(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Run the tests in two processes, unless the arguments say otherwise."""
    own = any(argument.startswith(("-n", "--numprocesses")) for argument in extra)
    processes = () if own or narrow(extra) else ("-n", TEST_PROCESSES)
    run(PYTHON, "-m", "pytest", *processes, *extra)


def check(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Run every check, the later ones also when an earlier one fails."""
    steps = {
        "format": ("-m", "ruff", "format", "--check", "."),
        "lint": ("-m", "ruff", "check", "."),
        "types": ("-m", "mypy"),
        "layers": ("-m", "pytest", "-q", "tests/test_layers.py"),
        "tests": ("-m", "pytest", "-n", TEST_PROCESSES, "--ignore=tests/test_layers.py"),
    }
    if arguments.fast:
        del steps["tests"]
    codes = {}
    for name, command in steps.items():
        say(f"== {name}")
        codes[name] = run(PYTHON, *command, check=False)
    say(", ".join(f"{name} {'FAILED' if code else 'ok'}" for name, code in codes.items()))
    if any(codes.values()):
        raise Failed(1)


def hooks(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Install a pre-commit hook that runs the fast part of check; replace no hook of others."""
    asked = ("git", "rev-parse", "--path-format=absolute", "--git-path", "hooks/pre-commit")
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        say(f"no hook was installed: {found.stderr.strip()}")
        raise Failed(2)
    hook = Path(found.stdout.strip())
    if hook.exists() and HOOK_SIGN not in hook.read_text():
        say(f"{hook} is there already and is not ours; add `{HOOK_COMMAND}` to it")
        raise Failed(2)
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{HOOK_SIGN}\nexec {HOOK_COMMAND}\n")
    hook.chmod(0o755)
    say(f"every commit is checked by {hook}; `git commit --no-verify` goes past it")


def guide(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Write the generated parts of the guide's pages."""
    run(PYTHON, ROOT / "tools" / "guide.py")


def bench(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Run the named benchmarks one after another."""
    known = sorted(p.stem for p in BENCHMARKS.glob("*.py") if not p.name.startswith("_"))
    unknown = [name for name in arguments.names if name not in known]
    if unknown or not arguments.names:
        say(f"{'no benchmark ' + ', '.join(unknown) + '; ' if unknown else ''}there are:")
        say("\n".join(f"  {name}" for name in known) or "  none")
        raise Failed(2 if unknown else 0)
    for name in arguments.names:
        run(PYTHON, BENCHMARKS / f"{name}.py", *extra)


def install() -> None:
    """Create .venv or bring it up to date; nothing is done when its stamp matches."""
    if sys.version_info < (3, 11):  # noqa: UP036 - any Python may be the one that runs this
        say(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; call a newer one")
        raise Failed(2)
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    started = time.monotonic()
    say(f"installing into {shown(VENV)} (some minutes the first time)")
    STAMP.unlink(missing_ok=True)
    pip = make_venv()
    run(*pip, "install", "--quiet", "--constraint", CONSTRAINTS, "--editable", ".[dev]")
    STAMP.write_text(wanted)
    say(f"installed in {time.monotonic() - started:.0f} s")


def make_venv() -> tuple[str | Path, ...]:
    """Create an empty .venv and return the start of a pip command that installs into it."""
    import venv

    symlinks = os.name != "nt"
    try:
        venv.create(VENV, clear=True, symlinks=symlinks, with_pip=True)
        return PYTHON, "-m", "pip"
    except subprocess.CalledProcessError:
        # Debian ships venv without ensurepip: our own pip can install into the other Python.
        venv.create(VENV, clear=True, symlinks=symlinks, with_pip=False)
        return sys.executable, "-m", "pip", "--python", PYTHON


def fingerprint() -> str:
    """Return what the environment is made from, as one hash."""
    content = hashlib.sha256(f"{sys.version}\n{ROOT}\n".encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS):
        content.update(path.read_bytes())
    return content.hexdigest()


def streamfluence(*arguments: str | Path) -> None:
    """Run the installed program, showing the command line first."""
    run(PROGRAM, *arguments)


def run(*command: str | Path | int, cwd: Path = ROOT, check: bool = True) -> int:
    """Show and run a command; raise Failed with its exit code unless ``check`` is False."""
    words = [str(word) for word in command]
    say("$ " + " ".join(shown(word) for word in words))
    code = subprocess.run(words, cwd=cwd).returncode
    if code and check:
        say(f"failed with exit code {code}: {' '.join(words)}")
        raise Failed(code if code > 0 else 1)
    return code


def first_query_set(job: Path) -> str:
    """Return the name of the first query set of a job."""
    import tomllib  # here, so that an older Python still gets the message of install()

    return next(iter(tomllib.loads(job.read_text())["queries"]))


def narrow(arguments: list[str]) -> bool:
    """Return whether a test run names files, where starting processes costs more than it saves."""
    return any(Path(argument.split("::")[0]).exists() for argument in arguments)


def shown(path: str | Path) -> str:
    """Return a path relative to the repository where it lies inside."""
    text = str(path)
    return text.removeprefix(f"{ROOT}{os.sep}")


def say(text: str) -> None:
    """Print one plain line at once, so that it stays in order with what the commands print."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
