"""Check stored bytes against their receipts."""

from dataclasses import asdict
from typing import Any

from streamfluence.errors import DamageError
from streamfluence.store import ANYTHING, RunStore

SAMPLE = 0.05  # share of partitions whose contents a sampled check reads


def verify(run_path: str, full: bool = False, fraction: float | None = None) -> dict[str, Any]:
    """Check structure always, and the contents of a share of the partitions, or of all with ``full``.

    Raises:
        DamageError: If anything is damaged; it lists the first partitions.
    """
    store = RunStore.open(run_path, ANYTHING)
    share = 1.0 if full else fraction or SAMPLE
    problems = [asdict(problem) for problem in store.verify(fraction=share)]
    if problems:
        shown = "; ".join(
            f"{p['stage']} partition {p['partition']}: {p['what']}" for p in problems[:5]
        )
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DamageError(
            f"{run_path}: {shown}{more}; `streamfluence repair` recomputes exactly these"
        )
    return {"run": run_path, "contents_checked": share, "problems": []}
