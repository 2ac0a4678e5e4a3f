"""Collect against plain training steps: examples per second, same model, batches, process and run.

    python tools/bench/collect.py [--model transformer resnet] [--device cuda] [--precision bf16]

The collect side is the stage's own code on a real run: read, capture, project, whiten, quantise.
The plain side reads the same batches and runs forward and backward (all weight gradients). The
two alternate; the figure is the median of the pairwise ratios. What the proof of some examples, a
look at some alone and the guard of every batch take of collecting a long partition is reckoned from
what each took in these runs. JSON on stdout.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from _models import RESNET, TRANSFORMER
from _setup import setup

from streamfluence.capture import _engine, _graph, _judge
from streamfluence.collecting import units as _collect_tasks
from streamfluence.collecting.decision import decision_of
from streamfluence.collecting.units import PROVED, partition_arrays
from streamfluence.data._prefetch import prefetch
from streamfluence.job_parser import load_job
from streamfluence.layout import Span, cut
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.resolve import open_run
from streamfluence.run.session import open_session
from streamfluence.stages.run import execution_of
from streamfluence.stages.sketch import sketch
from streamfluence.task_file import load_task

JOB = """
task = "task.py"
checkpoints = ["model.pt"]
[train]
reader = "arrays"
path = "train.npz"
[sketch]
examples = {sample}
probes = 1
[curvature]
learning_rate = 1e-3
steps = 1000
optimizer = "{optimizer}"
batch_size = 128
[rows]
bytes = {row_bytes}
[compute]
batch_size = {batch}
executor = "serial"
precision = "{precision}"
device = "{device}"
threads = {threads}
"""


def make(folder: Path, model: str, count: int) -> None:
    """Write task, random weights and random data of one model."""
    generator = np.random.default_rng(0)
    if model == "transformer":
        tokens = generator.integers(0, 256, (count, 129))
        np.savez(folder / "train.npz", tokens=tokens)
    else:
        images = generator.normal(size=(count, 3, 32, 32)).astype(np.float32)
        labels = generator.integers(0, 10, count)
        np.savez(folder / "train.npz", image=images, label=labels)
    (folder / "task.py").write_text(TRANSFORMER if model == "transformer" else RESNET)
    task = load_task("task.py", folder)
    torch.manual_seed(0)
    net = task._model.__globals__["Transformer" if model == "transformer" else "ResNet9"]()
    torch.save(net.state_dict(), folder / "model.pt")


def plain(opened, net, span: Span, size: int, half: bool) -> None:
    """Read the batches of ``span`` and run forward and backward with all weight gradients."""
    reader = opened.reader("train")
    for batch in prefetch(reader.read(p.start, p.stop) for p in cut(span, size)):
        with torch.autocast(opened.device.type, torch.bfloat16, enabled=half):
            returned = opened.task.forward(net, opened.batch(batch))
        opened.task.loss(returned).sum().backward()
        net.zero_grad(set_to_none=True)


def seconds(function, device: str) -> float:
    """Return how long a call takes, the device's queue included."""
    started = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


class Watch:
    """Seconds and calls of functions that are replaced by timed ones; outermost calls only."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds, self.calls, self._depth = device, 0.0, 0, 0

    def on(self, owner, name: str, count=lambda *_: 1) -> None:
        """Time every call of ``owner.name``; ``count`` says for how many it counts."""
        plain = getattr(owner, name)

        def timed(*args, **kwargs):
            self._depth += 1
            try:
                if self._depth > 1:
                    return plain(*args, **kwargs)
                found = []
                self.seconds += seconds(lambda: found.append(plain(*args, **kwargs)), self.device)
                self.calls += count(*args)
                return found[0]
            finally:
                self._depth -= 1

        setattr(owner, name, timed)

    @property
    def each(self) -> float:
        """Seconds of one."""
        return self.seconds / max(self.calls, 1)


def watches(device: str) -> dict[str, Watch]:
    """Start to time the proof of an example, that of one run alone, and the guard of a batch."""
    proof, look, guard = Watch(device), Watch(device), Watch(device)
    proof.on(_judge.Judge, "_fault_of_some", lambda judge, claim, prove, *_: len(prove))
    look.on(_judge.Judge, "_seen_alone")
    for number, (owner, name) in enumerate(
        (
            (_graph.Graph, "__init__"),
            (_graph.Graph, "structure"),
            (_graph.Graph, "precision"),
            (_engine, "moves"),
            (_engine, "origins"),
            (_engine.Capture, "_refuse_absent"),
        )
    ):
        guard.on(owner, name, lambda *_, number=number: number == 0)
    return {"proof": proof, "look": look, "guard": guard}


def shares(timed: dict[str, Watch], batch: int, seconds_a_batch: float) -> dict[str, float]:
    """Return what each takes of collecting a long partition, from what one of them takes."""
    proof = 2 / PROVED * timed["proof"].each * batch
    look = batch / _judge._LOOKED_AT * timed["look"].each
    parts = {"proof": proof, "look": look, "guard": timed["guard"].each}
    return {name: round(part / seconds_a_batch, 4) for name, part in parts.items()}


def measure(model: str, options: argparse.Namespace) -> dict:
    """Return the figures of one model."""
    batch = options.batch or {"transformer": 8, "resnet": 32}[model]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        span = Span(0, batch * options.batches)
        make(folder, model, max(len(span), options.sample))
        text = JOB.format(
            sample=options.sample, row_bytes=options.bytes, batch=batch,
            precision=options.precision, device=options.device, threads=options.threads,
            optimizer=options.optimizer,
        )  # fmt: skip
        (folder / "job.toml").write_text(text)
        job, path = load_job(folder / "job.toml"), str(folder / "run")
        torch.set_num_threads(options.threads)
        open_run(job, path)
        sketching = seconds(lambda: sketch(path, execution_of(job)), options.device)
        torch.set_num_threads(options.threads)
        session = open_session(path, options.device)
        decision = decision_of(AtCheckpoint(session, 0))
        net = session.task.model(folder / "model.pt").to(options.device)
        half = options.precision == "bf16"
        pairs = []
        # One batch of a run is proved whole; how many of a long partition are is known.
        _collect_tasks.proved = lambda part, span: (
            list(range(len(part))) if part.start == span.start + batch else []
        )
        # The first batches of a process are looked at closely.
        for _ in range(-(-_judge._FIRST_LOOKED // options.batches)):
            partition_arrays(decision, "train", span)
        timed = watches(options.device)
        for _ in range(options.repeats + 1):
            spent = timed["proof"].seconds + timed["look"].seconds
            ours = seconds(lambda: partition_arrays(decision, "train", span), options.device)
            ours -= timed["proof"].seconds + timed["look"].seconds - spent
            theirs = seconds(lambda: plain(session, net, span, batch, half), options.device)
            pairs.append((ours, theirs))
        pairs = pairs[1:]  # the first warms up
        taken = shares(timed, batch, statistics.median(p[0] for p in pairs) / options.batches)
        pairs = [(ours * (1 + taken["proof"] + taken["look"]), theirs) for ours, theirs in pairs]
        return {
            "model": model,
            "weights": sum(p.numel() for p in net.parameters()),
            "batch": batch,
            "row_bytes": decision.codec.stored_bytes,
            "directions": sum(part.width for part in decision.projection.parts),
            "collect_examples_per_second": len(span) / statistics.median(p[0] for p in pairs),
            "plain_examples_per_second": len(span) / statistics.median(p[1] for p in pairs),
            "ratio": statistics.median(p[1] / p[0] for p in pairs),
            "ratios": [round(p[1] / p[0], 3) for p in pairs],
            "shares": taken,
            "sketch_seconds": round(sketching, 1),
        }


def main() -> None:
    """Print the figures of every model asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["transformer", "resnet"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--optimizer", default="adam", help="adam: gradients are scaled, too; or sgd"
    )
    parser.add_argument("--bytes", type=int, default=256)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sample", type=int, default=64)
    options = parser.parse_args()
    models = [measure(model, options) for model in options.model]
    print(
        json.dumps(
            {"setup": setup(options.device), "options": vars(options), "models": models}, indent=1
        )
    )


if __name__ == "__main__":
    main()
