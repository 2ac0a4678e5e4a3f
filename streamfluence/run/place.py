"""Where things of a run lie now. Decides no number and nothing rests on it, so it may be replaced.

What is found there has to be what the method and the ledgers pin, by digest, or nothing is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamfluence.data import places_of
from streamfluence.execution import mounted_root


@dataclass(frozen=True)
class Place:
    """Where things of a run lie.

    Attributes:
        root: Folder against which relative paths resolve.
        task: File, or ``package.module:name``.
        checkpoints: Their paths, in order.
        data: Of a set by name, for each generation, the options of its reader that are paths.
    """

    root: Path
    task: str
    checkpoints: tuple[str, ...]
    data: Mapping[str, list[Mapping[str, Any]]]

    def table(self, example_set: str, generation: int, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the table of a reader, with the paths where its files lie now."""
        known = self.data.get(example_set, [])
        found = known[generation] if generation < len(known) else {}
        paths = places_of(table)
        return {**table, **{key: value for key, value in found.items() if key in paths}}

    def content(self) -> dict[str, Any]:
        """Return it as JSON."""
        data = {name: [dict(each) for each in self.data[name]] for name in self.data}
        return {
            "root": str(self.root),
            "task": self.task,
            "checkpoints": list(self.checkpoints),
            "data": data,
        }


def place_of(content: Mapping[str, Any]) -> Place:
    """Return the place that a document names, seen from the root given for this command if there is one."""
    place = Place(
        Path(content["root"]), content["task"], tuple(content["checkpoints"]), content["data"]
    )
    given = mounted_root()
    return place if given is None else replace(place, root=given)
