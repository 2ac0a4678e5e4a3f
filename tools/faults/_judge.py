"""What becomes of one damage: who finds it, who refuses, whose numbers change, what repair does."""

import os
import re
import subprocess
import sys
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _consumers import READERS, WRITERS, Answer, Consumer, arrays_of_sets, ask, same
from _damages import Damage
from _finished import SERIAL, Case, several_tasks
from _tree import copy, read_by

from streamfluence.layout import generation_path, score_path
from streamfluence.run.opened import OpenRun
from streamfluence.run.sets import score_names
from streamfluence.stages.repair import repair
from streamfluence.stages.verify import verify
from streamfluence.store import array_names

_CLI_SHARE = 30  # one case in so many is asked through the command line, too
# One repaired run in so many is asked for everything; of the others all that is stored is compared
# to the bit, and what is cheap is asked for.
_ASKED_SHARE = 6
_CHEAP = ("top",)
_LASTING = ("decision", "coverage", "scales")  # of a sketch: the rest may go once it decided


@dataclass
class Verdict:
    """What became of one damage.

    Attributes:
        outcomes: Names of columns of the table, once each.
        answers: Of verify, every consumer and repair, in words.
        failures: What must not be, a sentence each.
    """

    name: str
    what: str
    outcomes: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def say(self, outcome: str, failure: str = "") -> None:
        if outcome not in self.outcomes:
            self.outcomes.append(outcome)
        if failure:
            self.failures.append(failure)

    def table(self) -> dict[str, Any]:
        """Return it as one row of the JSON."""
        return asdict(self)


class Judge:
    """Asks every consumer about one damaged copy after another.

    Args:
        case: The undamaged run and those beside it.
        folder: Of its own, for copies.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self._case, self._run, self._second = case, folder / "run", folder / "second"
        # Few rows: another process would cost more than all of the work.
        os.sched_getaffinity = lambda process: {0}
        self._reads: dict[str, set[str]] = {}
        self._reference = {}
        copy(case.run, self._run)
        consumers = {**READERS, "sets": arrays_of_sets, **WRITERS}
        for name, consumer in consumers.items():
            self._reference[name] = self._learn(name, consumer)
        copy(case.run, self._run)
        for name, consumer in {"verify": _verify, "repair": _repair, "stored": stored}.items():
            self._reference[name] = self._learn(name, consumer)

    def _learn(self, name: str, consumer: Consumer) -> Any:
        """Return what a consumer says of the undamaged run, and note the files it reads."""
        answer, self._reads[name] = read_by(lambda: ask(consumer, self._run), self._run)
        assert answer.kind == "value", f"{name} of the undamaged run: {answer}"
        return answer.value

    def __call__(self, name: str, damage: Damage) -> Verdict:
        """Return what becomes of a damage."""
        verdict = Verdict(name, damage.what)
        copy(self._case.run, self._run)
        damage.apply(self._run)
        affected = [n for n in (*READERS, "sets", *WRITERS) if self._affects(n, damage)]
        if set(affected) & set(WRITERS):
            copy(self._run, self._second)
        found = self._verify(verdict)
        changed = self._consumers(verdict, affected)
        if changed and not found:
            verdict.say("missed", f"verify --full found nothing, but {', '.join(changed)} changed")
        self._repair(verdict)
        if zlib.crc32(name.encode()) % _CLI_SHARE == 0:
            self._command_line(verdict, damage)
        return verdict

    def _affects(self, name: str, damage: Damage) -> bool:
        return not damage.only_content or bool(self._reads[name] & set(damage.files))

    def _verify(self, verdict: Verdict) -> bool:
        answer = ask(_verify, self._run)
        verdict.answers["verify"] = _words(answer)
        if answer.kind == "traceback":
            verdict.say("traceback", f"verify: {answer.value}")
        found = answer.kind == "refused"
        verdict.say("found" if found else "not found")
        return found

    def _consumers(self, verdict: Verdict, affected: list[str]) -> list[str]:
        """Ask everyone; return whose numbers changed, readers of nothing but Zarr included."""
        changed: list[str] = []
        refused = False
        for name in affected:
            consumer = {**READERS, **WRITERS, "sets": arrays_of_sets}[name]
            answer = ask(consumer, self._second if name in WRITERS else self._run)
            verdict.answers[name] = _words(answer)
            if name == "sets":  # a reader that no receipt can warn: verify has to
                if answer.kind == "value" and not same(answer.value, self._reference[name]):
                    changed.append(name)
            elif answer.kind == "traceback":
                verdict.say("traceback", f"{name}: {answer.value}")
            elif answer.kind == "refused":
                refused = True
                verdict.say("refused")
            elif not same(answer.value, self._reference[name]) and name != "status":
                changed.append(name)
                where = difference(answer.value, self._reference[name])
                verdict.say("silent", f"{name} gave other numbers and no word: {where}")
        if not refused and "silent" not in verdict.outcomes:
            verdict.say("identical")
        return changed

    def _repair(self, verdict: Verdict) -> None:
        answer = ask(_repair, self._run)
        verdict.answers["repair"] = _words(answer)
        if answer.kind == "traceback":
            verdict.say("traceback", f"repair: {answer.value}")
        elif answer.kind == "refused":
            verdict.say("said so")
            self._still_refused(verdict)
        else:
            self._restored(verdict, answer)

    def _restored(self, verdict: Verdict, answer: Answer) -> None:
        """Judge what repair, which claims success, has left."""
        lost: list[str] = []
        consumers = {"stored": stored, "sets": arrays_of_sets, **READERS}
        del consumers["status"]  # it may say that something was set aside
        for name, consumer in consumers.items():
            if name in READERS and name not in _CHEAP and not (lost or self._drawn(verdict)):
                continue
            found = ask(consumer, self._run)
            if found.kind == "value" and same(found.value, self._reference[name]):
                continue
            lost.append(name)
            where = difference(found.value, self._reference[name])
            words = f"other than before: {where}" if found.kind == "value" else _words(found)
            verdict.answers[f"{name} after repair"] = words
            if found.kind == "value" and name not in ("stored", "sets"):
                verdict.say("silent", f"after repair {name} gave other numbers: {where}")
        if not lost:
            verdict.say("restored")
        elif _admits(answer.value):
            verdict.say("said so")
        else:
            told = "; ".join(verdict.answers[f"{name} after repair"][:160] for name in lost)
            verdict.say("not restored", f"repair ended well, but {', '.join(lost)}: {told}")

    def _drawn(self, verdict: Verdict) -> bool:
        return zlib.crc32(verdict.name.encode()) % _ASKED_SHARE == 0

    def _still_refused(self, verdict: Verdict) -> None:
        """After a repair that refused, numbers are still the right ones or none."""
        for name, consumer in READERS.items():
            found = ask(consumer, self._run)
            other = found.kind == "value" and not same(found.value, self._reference[name])
            if other and name != "status":
                where = difference(found.value, self._reference[name])
                verdict.say("silent", f"after a refused repair {name} gave other numbers: {where}")

    def _command_line(self, verdict: Verdict, damage: Damage) -> None:
        copy(self._case.run, self._run)
        damage.apply(self._run)
        for words in (["verify", "--full", self._run], ["top", self._run, "asked/0"]):
            command = [sys.executable, "-m", "streamfluence", *map(str, words)]
            told = subprocess.run(command, capture_output=True, text=True)
            verdict.answers[f"command {words[0]}"] = f"exit {told.returncode}: {told.stderr[:300]}"
            if told.returncode == 1 or "Traceback" in told.stderr:
                verdict.say("traceback", f"{words[0]} by the command line: {told.stderr[-300:]}")
            code = re.match(r"refused \((\d+)\)", verdict.answers["verify"])
            if words[0] == "verify" and told.returncode != (int(code[1]) if code else 0):
                what = f"exit {told.returncode}, but {verdict.answers['verify']}"
                verdict.say("traceback", f"verify by the command line: {what}")


def stored(run: str) -> Any:
    """Return every committed array of a run, and its documents."""
    store = OpenRun.open(run)
    arrays = {
        f"{stage}/{partition}/{name}": store.read(receipt, name)
        for stage in store.stages()
        if stage.split("/")[0] != "sketch" or stage.rsplit("/", 1)[1] in _LASTING
        for partition, receipt in store.receipts(stage).items()
        for name in array_names(receipt)
    }
    paths = [
        *(generation_path(name, 0) for name in store.example_sets()),
        *(score_path(label) for label in score_names(store)),
    ]
    return {**arrays, **{path: store.read_document(path) for path in paths}}


def _verify(run: str) -> Any:
    return verify(run, full=True)


def _repair(run: str) -> Any:
    with several_tasks():
        return repair(run, SERIAL)


def _admits(said: Any) -> bool:
    """Return whether what repair returned names something that it could not do."""
    keys = ("remaining", "not_repaired", "unrepaired", "cannot", "missing", "warnings", "lost")
    return isinstance(said, dict) and any(said.get(key) for key in keys)


def _words(answer: Answer) -> str:
    if answer.kind == "value":
        return "value"
    code = f" ({answer.code})" if answer.kind == "refused" else ""
    return f"{answer.kind}{code}: {answer.value}"


def difference(found: Any, wanted: Any, place: str = "") -> str:
    """Return the first thing in which two answers differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return f"{place} has {sorted(map(str, found.keys() ^ wanted.keys()))[:4]} or not"
        for key, value in found.items():
            if not same(value, wanted[key]):
                return difference(value, wanted[key], f"{place}/{key}")
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if not same(one, other):
                return difference(one, other, f"{place}/{i}")
    return f"{place}: {str(found)[:80]} for {str(wanted)[:80]}"
