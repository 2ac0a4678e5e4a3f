"""What is measured on a GPU: a run of random tokens, and stored rows with queries to score."""

import argparse
from pathlib import Path

import torch
from _nets import NETS, make
from score import make_codec, make_run

from streamfluence.codecs.base import Codec
from streamfluence.job import Job
from streamfluence.job_parser import load_job
from streamfluence.run.resolve import open_run
from streamfluence.run.session import open_session
from streamfluence.sketching import steps as sketching
from streamfluence.stages.run import execution_of

ROW_BYTES = 256


def sketch_all(path: str, job: Job) -> None:
    """Do what is missing of the sketch of a run."""
    execution = execution_of(job)
    sketching.sketch_missing(open_session(path, execution.resolved_device()), execution)


def prepare(
    folder: Path, options: argparse.Namespace, device: str, precision: str
) -> tuple[str, Job, int, int]:
    """Make a run of a few batches of random tokens; return path, job, weights and batch size."""
    net = NETS[options.net]
    batch = options.batch or net.batch
    weights = make(
        folder, net, batch * options.batches, options.side_limit,
        sample=batch * options.sample_batches, row_bytes=ROW_BYTES, batch=batch,
        precision=precision, device=device, threads=options.threads, optimizer="sgd",
    )  # fmt: skip
    job, path = load_job(folder / "job.toml"), str(folder / "run")
    open_run(job, path)
    return path, job, weights, batch


def stored_rows(folder: str, options: argparse.Namespace) -> tuple[Codec, torch.Tensor]:
    """Store random rows in a run; return their codec, and queries in its coordinates."""
    codec = make_codec("bands", ROW_BYTES)
    torch.manual_seed(0)
    queries = codec.query(torch.randn(options.queries, 8 * ROW_BYTES))
    make_run(folder, codec, options.rows, options.partition_rows, ROW_BYTES)
    return codec, queries
