"""Small jobs whose models or data do something that per-example gradients trip over, each with the truth.

Every one is a report from this field in miniature: what somebody's model did when a tool gave
wrong numbers, or none. The truth is R Qᵀ / n of float64 gradients, one example at a time.
"""

import importlib.util
import textwrap
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HEAD = """
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

likelihood = "{likelihood}"


def model(checkpoint):
    net = network()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return {wrapped}(net.eval())


def forward(net, b):
    return net({inputs}), b["y"]

"""

JOB = """
task = "task.py"
checkpoints = ["model.pt"]
[train]
{train}
[queries.test]
{test}
[projection]
name = "identity"
[curvature]
name = "identity"
[rows]
bytes = 0
codec = "float32"
[compute]
batch_size = 8
executor = "serial"
[score]
readouts = ["top_k"]
top_k = 5
"""

MLP = """
def network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
"""

TEXT = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(20, 5, padding_idx=0)
        self.l = nn.Linear(5, 6)
        self.h = nn.Linear(6, 3)

    def pooled(self, x, n):
        z = self.l(self.e(x)).tanh()
        mask = (torch.arange(x.shape[1])[None] < n[:, None]).unsqueeze(-1)
        return (z * mask).sum(1) / n[:, None]

    def forward(self, x, n):
{forward}


def network():
    return Net()
"""

SORTS = """
        order = n.argsort(descending=True, stable=True)
        return self.h(self.pooled(x[order], n[order]))[order.argsort()]
"""

# Name: the model's source, and what deviates from a classifier of vectors.
TASKS = {
    # Packed sequences want the longest text first, so models sort their batch and sort it back.
    "sorted by length": (TEXT.format(forward=SORTS), {"data": "texts", "plain": 0}),
    # The same, where the first batches hold texts of one length only.
    "sorted later": (TEXT.format(forward=SORTS), {"data": "texts", "plain": 16}),
    # Variable-length attention drops padding before the layers; the first texts have none.
    "unpadded later": (
        TEXT.format(
            forward="""
        m = torch.arange(x.shape[1])[None] < n[:, None]
        z = self.l(self.e(x[m])).tanh()
        g = torch.repeat_interleave(torch.arange(len(x)), n)
        return self.h(z.new_zeros(len(x), 6).index_add(0, g, z) / n[:, None])
"""
        ),
        {"data": "texts", "plain": 16},
    ),
    # A weight that is read a second time, by a function, for examples that ask for it.
    "weight used later": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 6)
        self.h = nn.Linear(6, 3)

    def forward(self, x, f):
        z = self.l(x).tanh()
        if f.any():
            z = torch.where(f[:, None], F.linear(z, self.l.weight), z)
        return self.h(z)


def network():
    return Net()
""",
        {"data": "flags", "plain": 16},
    ),
    # The usual way to treat padded text.
    "packed sequence": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(20, 5, padding_idx=0)
        self.r = nn.LSTM(5, 6, batch_first=True)
        self.h = nn.Linear(6, 3)

    def forward(self, x, n):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.e(x), n.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.h(self.r(packed)[1][0][-1])


def network():
    return Net()
""",
        {"data": "texts", "plain": 0},
    ),
    # A hook that logs gradient norms, on a module that has to be run again.
    "backward hook": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(6, 2, batch_first=True)
        self.h = nn.Linear(6, 3)
        self.a.register_full_backward_hook(lambda module, grad_input, grad_output: None)

    def forward(self, x):
        x = x.unsqueeze(1) * torch.arange(1, 4).view(1, 3, 1)
        return self.h(self.a(x, x, x)[0].mean(1))


def network():
    return Net()
""",
        {},
    ),
    # Interatomic potentials, gradient penalties, score matching.
    "differentiates itself": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.n(x).sum(), x, create_graph=True)[0]


def network():
    return Net()
""",
        {"data": "vectors", "likelihood": "gaussian"},
    ),
    # A head that squeezes: a batch of one loses its only axis.
    "squeezes": (
        """
class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 1))

    def forward(self, x):
        return (x @ self.w).squeeze()


def network():
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), Head())
""",
        {"data": "numbers", "likelihood": "gaussian"},
    ),
    # The same in a layer with a rule, where the last batch is one example, and in what is compared.
    "squeezes a remainder of one": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.h = nn.Linear(6, 1)

    def forward(self, x):
        return self.h(self.a(x.squeeze()).tanh()).squeeze()


def network():
    return Net()
""",
        {"data": "numbers", "likelihood": "gaussian", "counts": (41, 1)},
    ),
    "scripted": (
        MLP.replace("return nn", "return torch.jit.script(nn").replace("3))", "3)))"),
        {},
    ),
    "compiled": (MLP, {"wrapped": "torch.compile"}),
    # Data sets name the file that an item came from.
    "strings beside the numbers": (
        MLP
        + '''

class Data(torch.utils.data.Dataset):
    def __init__(self, path):
        self.arrays = dict(np.load(path))

    def __len__(self):
        return len(self.arrays["y"])

    def __getitem__(self, i):
        item = {name: array[i] for name, array in self.arrays.items()}
        return {**item, "file": f"image{i}.png", "about": {"tags": ["a", f"b{i}"]}}


def train_set():
    return Data("FOLDER/train.npz")


def test_set():
    return Data("FOLDER/test.npz")


def listed(items):
    return {
        "x": torch.from_numpy(np.stack([item["x"] for item in items])),
        "y": torch.tensor([int(item["y"]) for item in items]),
        "file": [item["file"] for item in items],
        "about": [item["about"] for item in items],
    }
''',
        {"reader": "python"},
    ),
}  # fmt: skip

# Dropout by a function is on unless it is told otherwise: there is no right number.
RANDOM = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.b = nn.Linear(8, 3)

    def forward(self, x):
        return self.b(F.dropout(self.a(x).relu(), 0.5))


def network():
    return Net()
"""


def write_task(folder: Path, source: str, options: dict) -> Path:
    """Write data, model, task and job of one task into ``folder`` and return the job's path."""
    data = options.get("data", "classes")
    inputs = {"texts": 'b["x"], b["n"]', "flags": 'b["x"], b["f"]'}.get(data, 'b["x"]')
    head = HEAD.format(
        likelihood=options.get("likelihood", "categorical"),
        wrapped=options.get("wrapped", ""),
        inputs=inputs,
    )
    (folder / "task.py").write_text(head + textwrap.dedent(source).replace("FOLDER", str(folder)))
    random = np.random.default_rng(0)
    for name, count in zip(("train", "test"), options.get("counts", (40, 8)), strict=True):
        np.savez(folder / f"{name}.npz", **fields(random, count, data, options.get("plain", 0)))
    torch.manual_seed(0)
    torch.save(loaded(folder).network().state_dict(), folder / "model.pt")
    python = 'reader = "python"\ndataset = "task.py:{}_set"\ncollate = "task.py:listed"'
    arrays = 'reader = "arrays"\npath = "{}.npz"'
    how = python if options.get("reader") == "python" else arrays
    (folder / "job.toml").write_text(JOB.format(train=how.format("train"), test=how.format("test")))
    return folder / "job.toml"


def fields(random: np.random.Generator, count: int, data: str, plain: int) -> dict:
    """Return the arrays of one set; nothing shows in the first ``plain`` examples."""
    late = np.arange(count) >= plain
    if data == "texts":
        n = np.where(late, random.integers(1, 9, count), 8)
        x = random.integers(1, 20, (count, 8)) * (np.arange(8)[None] < n[:, None])
        return {"x": x, "n": n, "y": random.integers(0, 3, count)}
    x = random.normal(size=(count, 6)).astype(np.float32)
    if data == "vectors":
        return {"x": x, "y": random.normal(size=(count, 6)).astype(np.float32)}
    if data == "numbers":
        return {"x": x, "y": random.normal(size=count).astype(np.float32)}
    flags = {"f": late & (random.random(count) < 0.5)} if data == "flags" else {}
    return {"x": x, **flags, "y": random.integers(0, 3, count)}


def loaded(folder: Path):
    """Return the task of a folder as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"hard_{folder.name}", folder / "task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected_scores(folder: Path) -> np.ndarray:
    """Return R Qᵀ / n, ``(example, query)``, by float64 autograd, one example at a time."""
    task = loaded(folder)
    net = task.network()
    net.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    net = net.eval().double()
    train, test = (_rows(task, net, folder / f"{name}.npz") for name in ("train", "test"))
    return (train @ test.T / len(train)).numpy()


def _rows(task, net, path: Path) -> torch.Tensor:
    tensors = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    batch = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
    rows = []
    for example in range(len(batch["y"])):
        outputs, targets = task.forward(
            net, {n: t[example : example + 1] for n, t in batch.items()}
        )
        if task.likelihood == "gaussian":
            value = (outputs.reshape(-1) - targets.reshape(-1)).square().sum() / 2
        else:
            value = F.cross_entropy(outputs, targets)
        found = torch.autograd.grad(value, list(net.parameters()), materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)
