"""Case (c): a causal transformer on source text of Python's standard library, AdamW.

The text is stored, since the library differs between versions of Python. Queries are sequences
of the same modules, so that some training sequences matter to each.

AdamW shrinks the weights apart from the gradient: its decay is no penalty in the loss, and not
the second derivative of one. Where training has settled, a weight w whose batch gradient has root
mean square v is held back by ``decay x v x w``, as an L2 penalty of ``decay x v`` would; stopping
after T steps of rate r adds about ``v / (r T)``. Here v is .0018 on average over the weights (of
the first judged net), r T is .45, so the two are 2e-4 and 4e-3: stopping decides, and the decay
itself, .1, is no damping at all. The job therefore states no weight decay, but how long Adam ran.
"""

import sys
import sysconfig
from pathlib import Path

import numpy as np

from cases.base import DATA, Case, Recipe, Split

TEXT_PATH = DATA / "stdlib_text.npz"
MODULES = (
    "argparse", "ast", "bdb", "calendar", "codeop", "configparser", "csv", "dataclasses",
    "difflib", "fractions", "functools", "gettext", "heapq", "imaplib", "inspect", "locale",
    "mailbox", "netrc", "optparse", "pdb", "pickle", "plistlib", "pprint", "random", "sched",
    "shelve", "shlex", "smtplib", "statistics", "tarfile", "textwrap", "zipapp",
)  # fmt: skip
N_TRAIN, N_QUERIES, LENGTH = 1024, 128, 65  # a sequence of 64 inputs holds the character after them
PER_MODULE = (N_TRAIN + N_QUERIES) // len(MODULES)


def text() -> Split:
    """Return the stored sequences of characters, uint8 ``(example, LENGTH)``."""
    with np.load(TEXT_PATH) as stored:
        return Split({"tokens": stored["train"]}, {"tokens": stored["queries"]})


def write_text() -> None:
    """Cut runs of sequences out of the running Python's library and store them."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    generator, rows = np.random.default_rng(0), []
    for name in MODULES:
        read = characters((folder / f"{name}.py").read_bytes())
        middle = len(read) // 3  # past the licence and the imports
        rows.append(read[middle : middle + PER_MODULE * LENGTH].reshape(PER_MODULE, LENGTH))
    order = generator.permutation(N_TRAIN + N_QUERIES)
    sequences = np.concatenate(rows)[order]
    np.savez_compressed(
        TEXT_PATH, train=sequences[:N_TRAIN], queries=sequences[N_TRAIN:], python=sys.version
    )


def characters(raw: bytes) -> np.ndarray:
    """Return bytes as 97 characters: 95 printable ones, line end, anything else."""
    code = np.frombuffer(raw, dtype=np.uint8)
    printable = (code >= 32) & (code < 127)
    return np.where(printable, code - 32, np.where(code == 10, 95, 96)).astype(np.uint8)


CASE = Case(
    key="c",
    name="code_transformer",
    title="transformer on source text, AdamW",
    recipe=Recipe(
        optimizer="adamw",
        learning_rate=3e-3,
        weight_decay=0.1,
        steps=300,
        batch_size=32,
        schedule="cosine",
        n_subsets=40,
        seeds=(0, 1),
    ),
    data=text,
    dampings=(1e-3, 3e-3, 1e-2, 1e-1),
    slow=True,
    models_at_once=2,
)

if __name__ == "__main__":
    write_text()
