"""Whole runs over batches that hold more than arrays: the scores are those of one example at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import streamfluence
from streamfluence import batches
from streamfluence.api import Run
from streamfluence.data import open_reader
from streamfluence.errors import InputError
from streamfluence.stages.run import run

N, QUERIES = 21, 5

TASK = """
import numpy as np
import torch
from torch import nn
likelihood = "categorical"
def network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
def model(checkpoint):
    net = network()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()
class Data(torch.utils.data.Dataset):
    def __init__(self, part):
        stored = np.load(f"{FOLDER}/{part}.npz")
        self.x, self.y = stored["x"], stored["y"]
    def __len__(self):
        return len(self.y)
    def __getitem__(self, i):
        return {"x": self.x[i], "y": int(self.y[i]), "file": f"img{i}.png"}
def train_set():
    return Data("train")
def test_set():
    return Data("test")
def tensors(items):
    x = torch.stack([torch.as_tensor(i["x"]) for i in items])
    return {"x": x, "y": torch.tensor([i["y"] for i in items])}
"""
# Each makes batches of another kind of the same examples: the collate function, and forward.
KINDS = {
    "strings": """
def collate(items): return {**tensors(items), "file": [i["file"] for i in items]}
def forward(net, b):
    assert len(b["file"]) == len(b["y"])
    return net(b["x"]), b["y"]
""",
    "tuple_of_strings": """
def collate(items): return (tensors(items), tuple(i["file"] for i in items))
def forward(net, b):
    assert len(b[1]) == len(b[0]["y"])
    return net(b[0]["x"]), b[0]["y"]
""",
    "string_array": """
def collate(items): return {**tensors(items), "file": np.array([i["file"] for i in items])}
def forward(net, b):
    assert len(b["file"]) == len(b["y"])
    return net(b["x"]), b["y"]
""",
    "list_of_plain_dicts": """
def collate(items):
    return {"y": tensors(items)["y"], "meta": [{"x": i["x"].tolist()} for i in items]}
def forward(net, b): return net(torch.tensor([m["x"] for m in b["meta"]])), b["y"]
""",
    "items_as_they_are": """
def collate(items): return items
def forward(net, b): return net(tensors(b)["x"]), tensors(b)["y"]
""",
    "list_of_tensors": """
def collate(items): return [torch.as_tensor(i["x"]) for i in items], [i["y"] for i in items]
def forward(net, b): return net(torch.stack(b[0])), torch.tensor(b[1])
""",
    "objects": """
class Thing:
    def __init__(self, item): self.item = item
def collate(items):
    things = np.empty(len(items), object)
    things[:] = [Thing(i) for i in items]
    return {"things": things}
def forward(net, b):
    t = tensors([thing.item for thing in b["things"]])
    return net(t["x"]), t["y"]
""",
    "nested_mappings": """
def collate(items):
    t = tensors(items)
    return {"in": {"deep": {"x": t["x"], "note": None}}, "out": [t["y"]], "scale": 1.0}
def forward(net, b): return b["scale"] * net(b["in"]["deep"]["x"]), b["out"][0]
""",
    "two_settings": """
def collate(items):
    two = [torch.ones(len(items)), torch.zeros(len(items))]
    return {**tensors(items), "sign": [1.0, -1.0], "two": two}
def forward(net, b):
    assert b["sign"] == [1.0, -1.0]
    one, zero = b["two"]
    return net(b["x"]) * one[:, None] + zero[:, None], b["y"]
""",
    "text_read_in_forward": """
def collate(items):
    texts = [" ".join(map(str, i["x"].tolist())) for i in items]
    return {"text": texts, "y": tensors(items)["y"]}
def forward(net, b):
    return net(torch.tensor([[float(word) for word in t.split()] for t in b["text"]])), b["y"]
""",
}
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
"""
PYTHON = 'reader = "python"\ndataset = "task.py:{part}_set"\ncollate = "task.py:collate"'
ARRAYS = 'reader = "arrays"\npath = "{part}.npz"'


def write(folder: Path, extra: str, reader: str = PYTHON, **fields) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", N), ("test", QUERIES)):
        x = generator.normal(size=(count, 6)).astype(np.float32)
        y = generator.integers(0, 3, count)
        more = {name: make(count) for name, make in fields.items()}
        np.savez(folder / f"{part}.npz", x=x, y=y, **more)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.save(net.state_dict(), folder / "model.pt")
    (folder / "task.py").write_text(f"FOLDER = {str(folder)!r}\n" + TASK + extra)
    tables = {part: reader.format(part=part) for part in ("train", "test")}
    path = folder / "job.toml"
    path.write_text(JOB.format(**tables))
    return path


def expected(folder: Path) -> np.ndarray:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    net.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    net.double()

    def rows(part):
        stored = np.load(folder / f"{part}.npz")
        for x, y in zip(stored["x"], stored["y"], strict=True):
            out = net(torch.from_numpy(x)[None].double())
            loss = nn.functional.cross_entropy(out, torch.tensor([int(y)]))
            found = torch.autograd.grad(loss, list(net.parameters()))
            yield torch.cat([g.flatten() for g in found])

    train, test = (torch.stack(list(rows(part))) for part in ("train", "test"))
    return (train @ test.T / N).numpy()


def assert_exact(folder: Path) -> Run:
    opened = streamfluence.open(str(folder / "run"))
    wanted = expected(folder)
    assert abs(opened.scores().compute() - wanted).max() < 1e-5 * abs(wanted).max()
    return opened


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_one_example_at_a_time(tmp_path, kind):
    run(write(tmp_path, KINDS[kind]), str(tmp_path / "run"))
    assert_exact(tmp_path)


@pytest.mark.parametrize("used", [True, False])
def test_a_string_field_of_npz_shards_needs_no_fields(tmp_path, used):
    check = "assert set(f[:3] for f in b['name']) == {'img'}; " * used
    forward = f"def forward(net, b): {check}return net(b['x']), b['y']"
    write(tmp_path, forward, ARRAYS, name=lambda count: np.array([f"img{i}" for i in range(count)]))
    run(tmp_path / "job.toml", str(tmp_path / "run"))
    assert_exact(tmp_path)


def test_one_item_is_collated_again_only_when_lists_are_new(tmp_path):
    (tmp_path / "d.py").write_text("""
calls = []
def collate(items):
    calls.append(len(items))
    return {"n": [i for i in items], "tags": [["a"] * (i + 1) for i in items], "kinds": ["x", "y"]}
data = list(range(12))
""")
    reader = open_reader(
        {"reader": "python", "dataset": "d.py:data", "collate": "d.py:collate"}, tmp_path
    )
    for start in (0, 4, 8):
        batch = reader.read(start, start + 4)
        assert batches.cut(batch, 1, 3)["n"] == [start + 1, start + 2]
        assert batches.select(batches.cut(batch, 0, 2), [1])["kinds"] == ["x", "y"]
    assert reader._collating[0].__globals__["calls"] == [4, 2, 3, 4, 4]


LABELLED = """
def collate(items):
    meta = [{'n': 7 * i['y']} for i in items]
    return {**tensors(items), 'file': [i['file'] for i in items], 'meta': meta}
def forward(net, b): return net(b['x']), b['y']
"""
METHODS = """
class Labelled(Data):
    def example_id(self, i): return f"own {i}"
    def groups(self): return [["even", "odd"][i % 2] for i in range(len(self))]
    def preview(self, i): return f"example {i}"
def train_set(): return Labelled("train")
"""


def test_ids_and_groups_are_fields_of_the_batch(tmp_path):
    options = '\nid_field = "file"\ngroup_field = "meta/n"'
    run(write(tmp_path, LABELLED, PYTHON + options), str(tmp_path / "run"))
    opened = assert_exact(tmp_path)
    y = np.load(tmp_path / "train.npz")["y"]
    listed = opened.top("test/0")
    assert listed["query"]["id"] == "img0.png"
    for line in listed["helps"]:
        assert line["id"] == f"img{line['row']}.png" and line["group"] == str(7 * y[line["row"]])
        assert f"img{line['row']}.png" in line["preview"]


def test_ids_groups_and_previews_are_methods_of_the_dataset(tmp_path):
    run(write(tmp_path, LABELLED + METHODS), str(tmp_path / "run"))
    opened = assert_exact(tmp_path)
    for line in opened.top("test/0")["helps"]:
        assert line["id"] == f"own {line['row']}" and line["preview"] == f"example {line['row']}"
        assert line["group"] == ["even", "odd"][line["row"] % 2]


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ("", 'id_field = "fiel"', r"'fiel' is no field of a batch; there are: .*file"),
        ("", 'id_field = "x"', "one whole number or string an example"),
        ("", 'group_field = "file"', r"holds strings; .*groups\(\)"),
        ("Data.ids = lambda self: [1, 2]", "", r"ids\(\) of the dataset gives 2 entries for 21"),
        ("Data.ids = lambda self: [1.5] * len(self)", "", "one whole number or string"),
        ("Data.ids = lambda self: 1 / 0", "", r"ids\(\) of the dataset failed: ZeroDivisionError"),
        ("Data.ids = lambda self: [1, 'a'] * 10 + [3]", "", "one whole number or string"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, more, options, message):
    path = write(tmp_path, LABELLED + more, PYTHON + "\n" + options)
    with pytest.raises(InputError, match=message):
        run(path, str(tmp_path / "run"))
