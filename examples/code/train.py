"""Write the data shards and train the checkpoint of this example: `python train.py`.

The data is the source text of this Python's own standard library, so nothing is
downloaded, and the exact text depends on the version of Python. Every twentieth file is
held out; some of its functions are the queries. Takes a few minutes on two cores.
"""

import ast
import json
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from task import DATA, PADDING, SEQUENCE, forward, model, train, training_sequences

CHECKPOINT = Path(__file__).parent / "checkpoints" / "model.pt"
SEED = 0
TRAIN_BYTES, TRAIN_SHARDS = 3_000_000, 4
QUERIES, HELD_OUT_EVERY = 48, 20
# Tests, other people's packages, and files that are tables rather than code.
EXCLUDED = {"test", "tests", "idlelib", "site-packages", "lib2to3", "turtledemo", "ensurepip",
            "encodings", "pydoc_data", "__pycache__"}  # fmt: skip
SEPARATOR = b"\0"


def main() -> None:
    """Write the data, train on all of it, save the weights, say how good they are."""
    trained_on, held_out = split(library_files())
    DATA.mkdir(exist_ok=True)
    write_stream(trained_on)
    write_queries(held_out)
    CHECKPOINT.parent.mkdir(exist_ok=True)
    start = time.monotonic()
    torch.save(train(range(len(training_sequences())), SEED), CHECKPOINT)
    print(f"trained in {time.monotonic() - start:.0f} s")
    net = model(CHECKPOINT)
    sample = training_sequences()[:: len(training_sequences()) // 256].to(torch.int64)
    queries = torch.from_numpy(np.load(DATA / "queries.npz")["tokens"])
    print(f"loss of {len(sample)} training sequences {loss(net, sample):.3f} nats a byte")
    print(f"loss of {len(queries)} held-out functions {loss(net, queries):.3f} nats a byte")
    print(f"wrote {DATA} and {CHECKPOINT}")


def library_files() -> list[tuple[str, bytes]]:
    """Return (path, text) of the standard library's modules, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root) for path in root.rglob("*.py")}
    kept = sorted(path.as_posix() for path in paths if not EXCLUDED & set(path.parts))
    return [(path, (root / path).read_bytes()) for path in kept]


def split(files: list[tuple[str, bytes]]) -> tuple[list, list]:
    """Return the files of the training set, up to TRAIN_BYTES, and those held out among them."""
    trained_on, held_out, total = [], [], 0
    for number, (path, text) in enumerate(files):
        if number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2:
            held_out.append((path, text))
        elif total + len(text) <= TRAIN_BYTES:
            trained_on.append((path, text))
            total += len(text)
    return trained_on, held_out


def write_stream(files: list[tuple[str, bytes]]) -> None:
    """Write the bytes of all files as flat shards, and where each file starts in the stream."""
    lengths = [len(text) + len(SEPARATOR) for _, text in files]
    starts = [0, *np.cumsum(lengths)[:-1].tolist()]
    (DATA / "documents.json").write_text(
        json.dumps({"starts": starts, "names": [path for path, _ in files]})
    )
    # Shards end where files end, so no file is cut by a shard.
    shard_of = np.array(starts) * TRAIN_SHARDS // sum(lengths)
    for shard in range(TRAIN_SHARDS):
        texts = [text for (_, text), owner in zip(files, shard_of, strict=True) if owner == shard]
        stream = b"".join(text + SEPARATOR for text in texts)
        np.save(DATA / f"train-{shard}.npy", np.frombuffer(stream, np.uint8))


def write_queries(files: list[tuple[str, bytes]]) -> None:
    """Write QUERIES functions of held-out files, each cut or padded to one row."""
    found = [each for path, text in files for each in functions(path, text)]
    chosen = found[:: max(1, len(found) // QUERIES)][:QUERIES]
    tokens = np.full((len(chosen), SEQUENCE + 1), PADDING, dtype=np.int64)
    for row, (_, text) in enumerate(chosen):
        kept = np.frombuffer(text[: SEQUENCE + 1], np.uint8)
        tokens[row, : len(kept)] = kept
    np.savez(DATA / "queries.npz", tokens=tokens, name=np.array([name for name, _ in chosen]))


def functions(path: str, text: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path:function, source) of the functions of one file that fill half a row or more."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            source = b"".join(lines[node.lineno - 1 : node.end_lineno])
            if len(source) >= SEQUENCE // 2:
                yield f"{path}:{node.name}", source


def loss(net, tokens: torch.Tensor) -> float:
    """Return the mean loss of the bytes of ``tokens`` that are not padding."""
    with torch.no_grad():
        outputs, targets = forward(net, {"tokens": tokens})
    flat = outputs.flatten(0, 1), targets.flatten()
    return F.cross_entropy(*flat, ignore_index=PADDING).item()


if __name__ == "__main__":
    main()
