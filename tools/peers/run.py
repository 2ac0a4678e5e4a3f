"""Score a case of the fidelity benchmark with other packages, each in an environment of its own.

    python tools/bench/fidelity.py --write-case a build/peers/cases/a
    python tools/peers/run.py build/peers/cases/a build/peers/scores/a
    python tools/peers/run.py build/peers/cases/a build/peers/scores/a --peers pydvl --models 0 1

Needs the standard library only. An environment under ``build/peers/`` holds exactly what
``requirements/<peer>.txt`` pins (about 1 GB a peer with the CPU build of torch; name an index that
has it with ``--extra-index-url``, or pip takes the CUDA build from PyPI). Every method of a peer is
a process: one that crashes, or runs past ``--timeout``, leaves a line with its error in
``results.jsonl`` and the others go on. Methods that are done already are left out.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "peers"
PEERS = ("traker", "dattri", "kronfluence", "pydvl")
CPU_TORCH = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    """Install and run the peers that the command line names."""
    options = _arguments()
    options.case, options.out = options.case.resolve(), options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for peer in options.peers:
        python = environment(peer, options.extra_index_url)
        methods = options.methods or _listed(python, peer)
        for model in options.models:
            for method in methods:
                if not _is_done(options.out, peer, method, model):
                    _score(python, peer, method, model, options)


def environment(peer: str, index: str | None) -> Path:
    """Return the Python of a peer's environment, made anew when its pins have changed."""
    folder, pins = BUILD / peer, HERE / "requirements" / f"{peer}.txt"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, digest = folder / "pins.sha256", hashlib.sha256(pins.read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == digest):
        _say(f"{peer}: installing into {folder}")
        venv.create(folder, clear=True, with_pip=True)
        more = ["--extra-index-url", index] if index else []
        command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(pins), *more]
        subprocess.run(command, check=True)
        stamp.write_text(digest)
    return python


def _listed(python: Path, peer: str) -> list[str]:
    command = [str(python), str(_script(peer)), "--list"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def _is_done(out: Path, peer: str, method: str, model: int) -> bool:
    path, wanted = out / "results.jsonl", (peer, method, model)
    lines = path.read_text().splitlines() if path.is_file() else []
    return any((d["peer"], d["method"], d["model"]) == wanted for d in map(json.loads, lines))


def _score(python: Path, peer: str, method: str, model: int, options: argparse.Namespace) -> None:
    """Run one method; what it prints goes to a log beside the scores."""
    log = options.out / f"{peer}-{method}-net{model}.log"
    command = [str(python), "-W", "ignore", str(_script(peer)), str(options.case), str(options.out)]
    command += ["--methods", method, "--model", str(model)]
    _say(f"{peer} {method}, net {model}")
    with log.open("w") as stream:
        try:
            code: int | str = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=options.timeout,
                cwd=options.out,  # dattri's LoGra writes a file wherever it runs
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"ran past {options.timeout} s"
    if code != 0:
        error = code if isinstance(code, str) else f"exit status {code}, see {log.name}"
        _say(f"{peer} {method}, net {model}: {error}")
        line = {"peer": peer, "method": method, "model": model, "error": error}
        with (options.out / "results.jsonl").open("a") as lines:
            lines.write(json.dumps(line) + "\n")


def _script(peer: str) -> Path:
    return HERE / f"score_{peer}.py"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", type=Path, help="folder of the case")
    parser.add_argument("out", type=Path, help="folder for scores, logs and results.jsonl")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--models", nargs="+", type=int, default=[0, 1], help="numbers of nets")
    parser.add_argument("--methods", nargs="+", help="instead of all; needs one peer")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a method and net")
    parser.add_argument("--extra-index-url", help=f"for pip, e.g. {CPU_TORCH}")
    options = parser.parse_args()
    if options.methods and len(options.peers) != 1:
        parser.error("--methods needs one peer: say which with --peers")
    for name in ("task.py", "train.npz", "queries.npz", *(f"net{i}.pt" for i in options.models)):
        if not (options.case / name).is_file():
            parser.error(
                f"{options.case} has no {name}; write the case with tools/bench/fidelity.py"
            )
    return options


if __name__ == "__main__":
    main()
