"""Write the data shards and train the checkpoint of this example: `python train.py`.

Makes data/train-{0..3}.npz (1,437 digits), data/test.npz (360) and checkpoints/model.pt,
in some ten seconds on one core. Needs scikit-learn for its handwritten digits.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from task import DATA, forward, model, train

CHECKPOINT = Path(__file__).parent / "checkpoints" / "model.pt"
SEED = 0
TRAIN_SHARDS = 4


def write_data() -> None:
    """Write the fields image, label and id; the id is the digit's number in scikit-learn."""
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    train_rows, test_rows = train_test_split(
        numbers, test_size=360, random_state=SEED, stratify=digits.target
    )
    DATA.mkdir(exist_ok=True)
    for shard, rows in enumerate(np.array_split(train_rows, TRAIN_SHARDS)):
        write_shard(DATA / f"train-{shard}.npz", digits, rows)
    write_shard(DATA / "test.npz", digits, test_rows)


def write_shard(path: Path, digits, rows: np.ndarray) -> None:
    """Write one shard with `np.savez`, not `savez_compressed`: it is then read in place."""
    images = (digits.images[rows] / 16).astype(np.float32)[:, None]
    np.savez(path, image=images, label=digits.target[rows].astype(np.int64), id=rows)


def accuracy(net, pattern: str) -> float:
    """Return the share of the digits in data/``pattern`` that ``net`` classifies rightly."""
    right = []
    for path in DATA.glob(pattern):
        batch = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        with torch.no_grad():
            outputs, targets = forward(net, batch)
        right.append(outputs.argmax(-1) == targets)
    return torch.cat(right).double().mean().item()


def main() -> None:
    """Write the data, train on all of it, save the weights, say how good they are."""
    write_data()
    CHECKPOINT.parent.mkdir(exist_ok=True)
    torch.save(train(range(1437), SEED), CHECKPOINT)
    net = model(CHECKPOINT)
    trained, tested = accuracy(net, "train-*.npz"), accuracy(net, "test.npz")
    print(f"train accuracy {trained:.4f}, test accuracy {tested:.4f}")
    print(f"wrote {DATA} and {CHECKPOINT}")


if __name__ == "__main__":
    main()
