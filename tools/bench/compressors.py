"""Size and speed of every lossless compressor on real rows: is one worth it behind a codec?

The rows are per-example gradients of an MLP 64-64-10 on scikit-learn's digits
(with noisy copies, for enough bytes to time), whitened by the empirical Fisher
and encoded by every codec; ``scores`` is their product with 64 queries. Each
array is written and read by Zarr in chunks of 2 MiB on a local disk. Prints
JSON on stdout: ratio = raw bytes / stored bytes, speeds in MB of raw bytes a
second, the best of ``--repeats``.

    python tools/bench/compressors.py --examples 16384 --width 1024 > compressors.json
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from streamfluence.codecs._compressors import AUTO, compressor_names, zarr_compressors
from streamfluence.registry import member

CHUNK_BYTES = 2 << 20
N_QUERIES = 64
SAMPLE = 2048  # examples that the whitening is fitted on
DAMPING = 0.1  # of the mean eigenvalue
CODECS = {"bands": 256, "int8": None, "float16": None, "float32": None}  # bytes a row


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows, energies = whitened_rows(options.examples, options.width)
    records = [
        {"array": name, "dtype": str(array.dtype), "raw_mb": array.nbytes / 1e6, **measured}
        for name, array in stored_arrays(rows, energies)
        for measured in measure_all(array, options.repeats)
    ]
    json.dump(
        {"torch": torch.__version__, "zarr": zarr.__version__, "records": records}, sys.stdout
    )


def whitened_rows(n_examples: int, width: int) -> tuple[Tensor, Tensor]:
    """Return whitened gradients, shape ``(example, width)``, and the energy of each coordinate."""
    images, labels = _images(n_examples)
    model = _trained(images, labels)
    gradients = _gradients(model, images, labels)
    _, values, basis = torch.linalg.svd(gradients[:SAMPLE].double(), full_matrices=False)
    values, basis = values[:width] ** 2 / SAMPLE, basis[:width].float()
    damping = DAMPING * values.mean()
    return (gradients @ basis.T) * (values + damping).rsqrt().float(), values / (values + damping)


def stored_arrays(rows: Tensor, energies: Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the array that every codec stores, and a block of scores."""
    for name, row_bytes in CODECS.items():
        kind = member("codecs", name)
        codec = kind(kind.allocate(energies, row_bytes, seed=0))
        encoded = codec.encode(rows)
        yield name, encoded.codes.numpy()
    yield "scores", codec.product(codec.query(rows[:N_QUERIES]), encoded).numpy()


def measure_all(array: np.ndarray, repeats: int) -> Iterator[dict]:
    """Yield ratio and speeds of every compressor on one array."""
    for name in compressor_names():
        if name != AUTO:
            yield {"compressor": name, **_measure(array, name, repeats)}


def _measure(array: np.ndarray, compressor: str, repeats: int) -> dict:
    row_bytes = array.nbytes // len(array)
    chunk_rows = 1 << (CHUNK_BYTES // row_bytes).bit_length() - 1  # a power of 2 fills every chunk
    with tempfile.TemporaryDirectory() as folder:
        stored = zarr.create_array(
            Path(folder) / "array.zarr",
            shape=array.shape,
            dtype=array.dtype,
            chunks=(min(chunk_rows, len(array)), array.shape[1]),
            filters=None,
            compressors=zarr_compressors(compressor, array.dtype),
        )
        write_s = _best(lambda: stored.__setitem__(..., array), repeats)
        read_s = _best(lambda: stored[...], repeats)
        np.testing.assert_array_equal(stored[...], array)
        stored_bytes = stored.nbytes_stored()
    return {
        "ratio": array.nbytes / stored_bytes,
        "write_mb_s": array.nbytes / 1e6 / write_s,
        "read_mb_s": array.nbytes / 1e6 / read_s,
    }


def _best(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _images(n_examples: int) -> tuple[Tensor, Tensor]:
    """Return digits, repeated with pixel noise until there are enough."""
    digits = load_digits()
    pick = torch.arange(n_examples) % len(digits.target)
    images = torch.from_numpy(digits.data).float()[pick] / 16
    noise = (
        0.1 * torch.randn(images.shape) * (torch.arange(n_examples) >= len(digits.target))[:, None]
    )
    return images + noise, torch.from_numpy(digits.target)[pick]


def _trained(images: Tensor, labels: Tensor, steps: int = 600) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        optimiser.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
    return model.requires_grad_(False)


def _gradients(model: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of every example's loss, shape ``(example, weight)``."""
    weights = dict(model.named_parameters())

    def loss(weights, image, label):
        return cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    parts = []
    for batch in torch.arange(len(images)).split(1024):
        found = each(weights, images[batch], labels[batch])
        parts.append(torch.cat([g.flatten(1) for g in found.values()], dim=1))
    return torch.cat(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=16384)
    parser.add_argument("--width", type=int, default=1024, help="coordinates of a whitened row")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


if __name__ == "__main__":
    main()
