"""Break the mathematics or its wiring in one place, and see the narrowest test file fail.

    python tools/faults/mutants.py                  all mutants, each in a copy of the package
    python tools/faults/mutants.py --only NAME      one of them; may be repeated
    python tools/faults/mutants.py --list

A mutant survives when its tests pass. Exit code: the number of survivors.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Try the chosen mutants; return how many survive."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--list", action="store_true", help="print their names and end")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(f"{each.name}: {each.tests}" for each in MUTANTS))
        return 0
    chosen = [each for each in MUTANTS if not asked.only or each.name in asked.only]
    survivors = 0
    for mutant in chosen:
        started = time.monotonic()
        died = dies(mutant)
        survivors += not died
        said = "dies" if died else "SURVIVES"
        print(f"{said:8} {time.monotonic() - started:5.0f} s  {mutant.name}", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survive")
    return survivors


def dies(mutant: Mutant) -> bool:
    """Return whether the tests of a mutant fail on it."""
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder)
        for name in ("streamfluence", "tests", "tools"):
            shutil.copytree(
                ROOT / name, broken / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", broken)
        path = broken / "streamfluence" / mutant.module
        text = path.read_text()
        if text.count(mutant.before) != 1:
            raise SystemExit(
                f"{mutant.name}: {mutant.before!r} is {text.count(mutant.before)} times in {path.name}"
            )
        path.write_text(text.replace(mutant.before, mutant.after))
        words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        chosen = ["-k", mutant.chosen] if mutant.chosen else []
        environment = {**os.environ, "PYTHONPATH": str(broken), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [*words, f"tests/{mutant.tests}", *chosen],
            cwd=broken,
            env=environment,
            capture_output=True,
            text=True,
        )
        if ran.returncode not in (0, 1):
            raise SystemExit(
                f"{mutant.name}: its tests did not run\n{ran.stdout[-2000:]}{ran.stderr}"
            )
        return ran.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
