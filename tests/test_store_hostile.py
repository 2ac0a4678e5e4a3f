"""A run made to harm whoever opens it: one sentence, little memory, little time, and no code of its."""

import copy
import json
import os
import resource
import subprocess
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import blosc, zstd

from streamfluence.cli import main
from streamfluence.errors import DamageError, InputError, StreamfluenceError
from streamfluence.registry import member
from streamfluence.store import RunStore, grid
from streamfluence.store.documents import seal, unseal
from streamfluence.store.grid import parse_grid
from streamfluence.store.ledger import begin_ledger
from streamfluence.store.receipts import parse_receipt, read_receipt

STAGE = "collect/train/0"
MANIFEST = {
    "task_digest": "0",
    "task_files": {"task.py": "0"},
    "checkpoints": [{"name": "model.pt", "sha256": "0"}],
    "checkpoint_weights": [1.0],
    "model": {"exclude": []},
    "sketch": {"examples": 64, "probes": "auto", "seed": 0},
    "feature": {"name": "gradient", "options": {}},
    "projection": {"name": "spectral", "width": 64, "options": {}},
    "curvature": {
        "name": "gauss_newton",
        "options": {},
        "blocks": "layer",
        "damping": 0.01,
        "weight_decay": None,
        "learning_rate": None,
        "steps": None,
        "momentum": 0.0,
        "optimizer": "sgd",
        "batch_size": None,
    },
    "rows": {
        "bytes": 8,
        "codec": "bands",
        "options": {},
        "compressor": "auto",
        "max_non_finite": 0.1,
    },
    "compute": {"batch_size": 16, "precision": "float32", "threads": 1},
}
TRAIN = {
    "measurement": "training_loss",
    "table": {"reader": "arrays"},
    "count": 64,
    "partition_examples": 64,
    "identity": {"count": 64},
    "code": {},
}
QUERIES = {**TRAIN, "measurement": "loss"}
PLACE = {"root": "/nowhere", "task": "task.py", "checkpoints": ["model.pt"], "data": {}}
SCORES = {
    "queries": "test",
    "measurement": "loss",
    "damping": None,
    "scale": "none",
    "readouts": {"top_k": {"k": 3}},
    "tasks": [[0]],
    "missing_partitions": [],
    "meaning": "",
    "unit": "",
    "rests_on": {},
}
FACTS = {"non_finite": 0, "seconds": 1.0}


@pytest.fixture
def store(tmp_path):
    return made(tmp_path / "run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run for tests that change nothing of it."""
    return made(tmp_path_factory.mktemp("whole") / "run")


def made(path, compressor="none", values=None):
    store = RunStore.create(path, MANIFEST)
    begin_ledger(store.storage, "train", store.fingerprint, TRAIN)
    begin_ledger(store.storage, "test", store.fingerprint, QUERIES)
    store.create_document("place.json", PLACE)
    store.create_document("scores/test/score.json", SCORES)
    rows = np.arange(64 * 8, dtype=np.float32).reshape(64, 8) if values is None else values
    store.commit(
        STAGE, 0, {"rows": rows}, {"a": 1}, {"start": 0, "stop": 64, **FACTS}, {"rows": compressor}
    )
    return store


def forge(store, key, change, stage=STAGE):
    """Change the metadata of an array and seal a receipt that vouches for it."""
    receipt = store.receipt(stage, 0)
    path = store.storage.local_path(f"{receipt.path}/{key}")
    data = change(path.read_bytes())
    path.write_bytes(data)
    promise(store, {key: [len(data), zlib.crc32(data)]})


def promise(store, objects, **others):
    path = store.storage.local_path(f"receipts/{STAGE}/00000000.json")
    content = unseal(path.read_bytes(), "")
    path.write_bytes(seal({**content, "objects": {**content["objects"], **objects}, **others}))


def forge_json(change):
    def apply(data):
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return apply


def use(store):
    """Ask for all that a run is asked for; what is refused is refused in a sentence."""
    for action in (
        lambda: RunStore.open(store.url),
        store.verify,
        lambda: store.receipts(STAGE),
        lambda: [store.read_all(r) for r in store.receipts(STAGE).values()],
        lambda: [store.read_attributes(r) for r in store.receipts(STAGE).values()],
        lambda: [list(store.read_blocks(r, "rows", 7)) for r in store.receipts(STAGE).values()],
        lambda: store.read_document("data/test/000000.json"),
        lambda: store.read_document("scores/test/score.json"),
        store.leftovers,
    ):
        try:
            action()
        except StreamfluenceError as error:
            assert len(str(error)) < 2000 and error.exit_code in (2, 3, 4)


def ask(*arguments):
    told = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert told.exit_code in (2, 3, 4) and told.stderr.startswith("error: "), told.output
    assert told.stderr.count("\n") == 1 and "Traceback" not in told.output
    return told.stderr


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(
        [10**30, -1, 2**63, 2**53, "../x", "/etc/passwd", "a\0b", "a\\b", "\ud800", ""]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
quick = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELDS = [
    "stage",
    "partition",
    "start",
    "stop",
    "attempt",
    "fingerprint",
    "objects",
    "facts",
    "version",
]


def raw_seal(content) -> bytes:
    """Seal what ``seal`` refuses to."""
    import google_crc32c

    body = json.dumps(content).encode()[1:]
    return b'{"crc32c": "%08x",' % google_crc32c.value(body) + body


@quick
@given(data=st.data())
def test_any_value_in_any_field_of_a_receipt_is_damage_or_a_receipt(whole, data):
    content = unseal(whole.storage.read(f"receipts/{STAGE}/00000000.json"), "")
    for field in data.draw(st.sets(st.sampled_from(FIELDS), min_size=1)):
        content[field] = data.draw(anything)
    if data.draw(st.booleans()):
        content[data.draw(st.text())] = data.draw(anything)
    try:
        found = parse_receipt(raw_seal(content), STAGE, 0, whole.fingerprint, whole.url)
    except DamageError:
        return
    assert found.path.startswith(f"parts/{STAGE}/00000000.") and "/" not in found.attempt
    assert 0 <= found.start <= found.stop < 2**53
    assert all(0 <= item.length < 2**53 for item in found.objects.values())


@quick
@given(item=anything, name=st.text() | st.sampled_from(["rows/zarr.json", "../x", "zarr.json"]))
def test_any_object_in_a_receipt_is_damage_or_an_object(whole, item, name):
    content = unseal(whole.storage.read(f"receipts/{STAGE}/00000000.json"), "")
    content["objects"][name] = item
    try:
        found = parse_receipt(raw_seal(content), STAGE, 0, whole.fingerprint, whole.url)
    except DamageError:
        return
    assert not name.startswith("/") and ".." not in name.split("/")
    assert type(found.objects[name].length) is int


@quick
@given(data=st.data())
def test_any_value_in_a_manifest_is_refused_or_what_every_reader_takes(whole, data):
    from streamfluence.store.shapes import checked_manifest

    content = copy.deepcopy(MANIFEST)
    table = content
    key = data.draw(st.sampled_from(sorted(MANIFEST)))
    if isinstance(content[key], dict) and data.draw(st.booleans()):
        table, key = content[key], data.draw(st.sampled_from(sorted(content[key])))
    if data.draw(st.booleans()):
        table[key] = data.draw(anything)
    else:
        del table[key]
    try:
        found = checked_manifest(content, "manifest.json")
        assert len(found["checkpoints"]) == len(found["checkpoint_weights"]) > 0
        assert found["rows"]["bytes"] >= 0
    except DamageError as error:
        assert key in str(error)


@quick
@given(data=st.data())
def test_any_value_in_the_metadata_of_an_array_is_damage_or_a_bounded_array(whole, data):
    receipt = whole.receipt(STAGE, 0)
    metadata = json.loads(whole.storage.read(f"{receipt.path}/rows/zarr.json"))
    table = metadata
    for _ in range(data.draw(st.integers(0, 3))):
        inner = list(table.values()) if isinstance(table, dict) else list(table)
        tables = [value for value in inner if isinstance(value, dict | list) and value]
        if not tables:
            break
        table = data.draw(st.sampled_from(tables))
    key = data.draw(
        st.sampled_from(sorted(table) if isinstance(table, dict) else range(len(table)))
    )
    table[key] = data.draw(anything | st.sampled_from([[10**12, 8], [64, -5], [0, 0], [2**40] * 2]))
    try:
        found = parse_grid(metadata, "x")
    except DamageError:
        return
    assert all(type(length) is int and length >= 0 for length in found.shape)
    assert 1 <= found.inner_rows <= max(found.rows, 1) and found.object_rows % found.inner_rows == 0


SHAPES = [
    [10**12, 8],
    [64, 10**12],
    [-5, 8],
    [64, -5],
    [64.5, 8],
    ["64", 8],
    [True, 8],
    [64],
    [[64], 8],
]


@pytest.mark.parametrize("shape", [*SHAPES, None, 64, {}, "64", [64] * 100])
def test_an_array_of_another_shape_than_its_objects_is_refused_before_memory_is_taken(store, shape):
    forge(store, "rows/zarr.json", forge_json(lambda m: m.update(shape=shape)))
    with pytest.raises(DamageError):
        store.read(store.receipt(STAGE, 0), "rows")
    use(store)


@pytest.mark.parametrize(
    "changed", [{"fill_value": {"a": 1}}, {"dimension_names": 7}, {"dimension_names": []}]
)
def test_metadata_that_only_zarr_understands_is_refused_when_it_is_published(store, changed):
    forge(store, "rows/zarr.json", forge_json(lambda m: m.update(changed)))
    with pytest.raises(DamageError, match=r"rows/zarr\.json does not describe an array"):
        store.finalise("train", 1, 1)


@pytest.mark.parametrize("changed", [{"zarr_format": 2}, {"node_type": "group"}])
def test_metadata_of_another_kind_of_node_is_refused_by_whoever_reads_it(store, changed):
    forge(store, "rows/zarr.json", forge_json(lambda m: m.update(changed)))
    with pytest.raises(DamageError):
        store.read(store.receipt(STAGE, 0), "rows")
    with pytest.raises(DamageError):
        store.finalise("train", 1, 1)


@pytest.mark.parametrize(
    "stored", [True, 1, [], "x", {"rows": 1}, {"rows": [], "error": 0, "kept": 0}]
)
def test_what_a_receipt_says_of_the_codec_is_added_up_or_damage(store, stored):
    content = unseal(store.storage.read(f"receipts/{STAGE}/00000000.json"), "")
    content["facts"]["stored"] = stored
    with pytest.raises(DamageError, match=r"stored|rows"):
        parse_receipt(raw_seal(content), STAGE, 0, store.fingerprint, store.url)


def test_an_array_with_other_rows_than_its_partition_is_refused(store):
    promise(store, {}, stop=63)
    with pytest.raises(DamageError, match="it has 64 rows, its partition 63"):
        store.read(store.receipt(STAGE, 0), "rows")


def test_a_sparse_array_larger_than_memory_is_refused(store):
    """A file of a terabyte costs nothing to make; reading it must not take a terabyte."""
    length = 1 << 40
    rows = length // 4
    receipt = store.receipt(STAGE, 0)

    def wide(metadata):
        metadata["shape"] = [1, rows]
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1, rows]

    promise(store, {}, stop=0)
    forge(store, "rows/zarr.json", forge_json(wide))
    path = store.storage.local_path(f"{receipt.path}/rows/c.0.0")
    with path.open("r+b") as file:
        file.truncate(length + 4)
    promise(store, {"rows/c.0.0": [length + 4, 0, "0" * 8]})
    with pytest.raises(StreamfluenceError, match="more than the memory of this machine"):
        store.read(store.receipt(STAGE, 0), "rows")


BOMB = 1 << 30


def zstd_bomb():
    return zstd.compress(np.zeros(BOMB, np.uint8), 1)


def gzip_bomb():
    made = zlib.compressobj(9, wbits=31)
    parts = [made.compress(bytes(1 << 20)) for _ in range(BOMB >> 20)]
    return b"".join(parts) + made.flush()


def blosc_bomb():
    return blosc.compress(np.zeros(BOMB, np.uint8), b"zstd", 9, 1)


@pytest.mark.parametrize(
    ("compressor", "bomb"),
    [("zstd", zstd_bomb), ("gzip", gzip_bomb), ("blosc-shuffle-zstd", blosc_bomb)],
)
def test_what_grows_beyond_its_array_when_it_is_decoded_is_refused_at_its_size(
    tmp_path, compressor, bomb
):
    import google_crc32c

    store = made(tmp_path / "run", compressor)
    frame = bomb()
    data = frame + google_crc32c.value(frame).to_bytes(4, "little")
    data = data if len(data) < 4000 else data[:4000]  # as much as an object of this array can have
    del frame
    receipt = store.receipt(STAGE, 0)
    store.storage.local_path(f"{receipt.path}/rows/c.0.0").write_bytes(data)
    promise(store, {"rows/c.0.0": [len(data), zlib.crc32(data)]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamageError, match=r"rows/c\.0\.0"):
        store.read(store.receipt(STAGE, 0), "rows")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    use(store)


@pytest.mark.parametrize("compressor", ["zstd", "gzip", "blosc-shuffle-zstd", "lz4"])
def test_frames_that_are_cut_or_nonsense_are_damage(tmp_path, compressor, monkeypatch):
    import google_crc32c

    monkeypatch.setattr(grid, "INNER_BYTES", 256)
    monkeypatch.setattr(grid, "SHARD_BYTES", 1024)
    store = made(tmp_path / "run", compressor)
    receipt = store.receipt(STAGE, 0)
    path = store.storage.local_path(f"{receipt.path}/rows/c.0.0")
    good = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 3):
            data[place] ^= int(generator.integers(1, 255))
        data = bytes(data[: generator.integers(1, len(data) + 1)])
        if generator.random() < 0.5 and len(data) > 100:  # with an index that is believed
            tail = data[-(4 * 16 + 4) : -4]
            data = data[:-4] + google_crc32c.value(tail).to_bytes(4, "little")
        path.write_bytes(data)
        promise(store, {"rows/c.0.0": [len(data), zlib.crc32(data)]})
        with pytest.raises(DamageError):
            store.read(store.receipt(STAGE, 0), "rows")


TEXTS = {
    "empty": b"",
    "not utf-8": b"\xff\xfe{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "not json": b"{",
    "deep lists": b'{"a": ' + b"[" * 100_000,
    "deep tables": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deeper than any document": b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
    "a huge number": b'{"a": ' + b"9" * 5000 + b"}",
    "a large number": b'{"a": 1' + b"0" * 30 + b"}",
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "beyond floats": b'{"a": 1e999}',
    "a key twice": b'{"a": 1, "a": 2}',
    "a list": b"[1]",
    "a number": b"1",
    "lone surrogate": rb'{"holds": "\ud800\u202e"}',
    "too long": b'{"a": "' + b"x" * (17 << 20) + b'"}',
}


def sealed(text: bytes) -> bytes:
    import google_crc32c

    body = text[1:]
    return b'{"crc32c": "%08x",' % google_crc32c.value(body) + body


@pytest.mark.parametrize("seal_it", [False, True])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        f"receipts/{STAGE}/00000000.json",
        "data/test/000000.json",
        "identities/a.json",
    ],
)
def test_any_text_in_the_place_of_a_document_is_one_sentence(store, name, text, seal_it):
    path = store.storage.local_path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(sealed(TEXTS[text]) if seal_it else TEXTS[text])
    if name == "manifest.json":
        with pytest.raises((DamageError, InputError)):
            RunStore.open(store.url)
    elif not (seal_it and text == "lone surrogate"):
        assert any(problem.object == name for problem in store.verify())
    use(store)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_in_the_place_of_metadata_is_one_sentence(store, text):
    for key in ("zarr.json", "rows/zarr.json"):
        forge(store, key, lambda data: TEXTS[text])
    use(store)


def test_a_document_that_ends_nowhere_is_not_read_to_its_end(store):
    path = store.storage.local_path("data/test/000000.json")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamageError, match="longer than a document of a run may be"):
        store.read_document("data/test/000000.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10


MANIFESTS = {
    "checkpoints": [("checkpoints",), {}, [], 3, "model.pt", [1], [{}], [{"name": 1, "sha256": 2}]],
    "weights": [("checkpoint_weights",), {}, [], [1, 2], ["x"], [None]],
    "rows": [("rows",), [], {"bytes": "x"}, 3],
    "curvature": [("curvature",), {}, "identity", None],
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_of_another_shape_is_refused_with_the_key(store, name):
    place, *values = MANIFESTS[name]
    for value in values:
        content = copy.deepcopy({"format_version": store.manifest["format_version"], **MANIFEST})
        *above, last = place
        table = content
        for key in above:
            table = table[key]
        table[last] = value
        store.storage.local_path("manifest.json").write_bytes(seal(content, indent=2))
        for command in ("status", "verify"):
            told = ask(command, store.url)
            assert last in told and "put back what was there" in told


def test_a_manifest_that_lacks_what_is_asked_for_is_damage(store):
    for key in MANIFEST:
        content = {"format_version": store.manifest["format_version"], **MANIFEST}
        del content[key]
        path = store.storage.local_path("manifest.json")
        path.write_bytes(seal(content, indent=2))
        opened = RunStore.open(store.url)
        with pytest.raises(DamageError, match=f"lacks '{key}'"):
            opened.manifest[key]


DOCUMENTS = [
    *(
        (f"data/{name}/000000.json", *what)
        for name in ("train", "test")
        for what in (
            ("count", [0, -1, "7", None, 10**17, 10**18, 1.5, True, [], {}]),
            ("partition_examples", [0, -3, [], "x", None]),
            ("table", [[], "x", {"path": "a\0b"}, None]),
            ("generation", [-1, "0", None]),
            ("start", [-1, "0", None, 1.5]),
            ("before", [None, 3, "a\0b"]),
            ("set", ["../x", "a/b", 3, "", None]),
        )
    ),
    ("place.json", "root", [3, None, "a\0b", ["/"]]),
    ("place.json", "task", [3, None, []]),
    ("place.json", "checkpoints", [{}, [], [3], ["a.pt", "b.pt"], None]),
    (
        "place.json",
        "data",
        [[], {"train": {}}, {"train": [3]}, {"train": [{"path": "a\0b"}]}, None],
    ),
    ("scores/test/score.json", "tasks", [3, [3], [["x"]], {}, [[-1]], None]),
    ("scores/test/score.json", "queries", ["../x", "a/b", 3, "", None]),
    ("scores/test/score.json", "readouts", [[], 3]),
    ("scores/test/score.json", "missing_partitions", [None, "x", [None]]),
]


@pytest.mark.parametrize(("name", "key", "values"), DOCUMENTS)
def test_a_document_of_another_shape_is_refused_with_the_key(store, name, key, values):
    path = store.storage.local_path(name)
    good = unseal(path.read_bytes(), "")
    for value in values:
        path.write_bytes(seal({**good, key: value}))
        with pytest.raises(DamageError, match=key):
            store.read_document(name)
        ask("status", store.url) if name != "place.json" else None  # which does not look there
        assert name in ask("verify", store.url)


def test_counts_that_need_more_partitions_than_any_run_has_are_refused_at_once(store):
    path = store.storage.local_path("data/test/000000.json")
    content = unseal(path.read_bytes(), "")
    path.write_bytes(seal({**content, "count": 2**52, "partition_examples": 1}))
    ask("status", store.url)
    ask("verify", store.url)


NAMES = [
    "/etc/passwd",
    "../x",
    "..",
    "x/../../y",
    "a\0b",
    "os",
    "os.path",
    "sys:exit",
    "base",
    "_kept",
    "",
]


FAMILIES = ["projections", "codecs", "curvature", "preconditioners", "readouts", "executors"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*NAMES, None, 3, [], {}])
def test_a_name_from_a_manifest_imports_nothing_but_members(family, name):
    with pytest.raises(InputError, match=f"no {family} member is called"):
        member(family, name)


@pytest.mark.parametrize(
    "name",
    [
        "١٢٣٤٥٦٧٨.json",  # digits, but not those of a receipt's name
        "000000000.json",  # the partition that 00000000.json is
        "9" * 200 + ".json",
        "00000001.json.json",
    ],
)
def test_a_name_that_no_receipt_has_is_none(store, name):
    path = store.storage.local_path(f"receipts/{STAGE}/00000000.json")
    (path.parent / name).write_bytes(path.read_bytes())
    assert store.committed(STAGE) == [0] and list(store.receipts(STAGE)) == [0]


def test_folders_without_end_are_walked_in_bounded_depth(store):
    """Deeper than Python recurses; removed here, because what cleans up after tests recurses, too."""
    tops, here = ("receipts", "parts", "receipts-damaged"), os.getcwd()
    try:
        for top in tops:
            os.makedirs(f"{store.url}/{top}", exist_ok=True)
            os.chdir(f"{store.url}/{top}")
            for _ in range(1500):
                os.mkdir("d")
                os.chdir("d")
        os.chdir(here)
        assert store.stages() == [STAGE] and store.unfinished() == []
        assert store.collect_garbage(older_than_s=0) == []
        use(store)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", *(f"{store.url}/{top}/d" for top in tops)], check=True)


def test_a_receipt_that_is_read_alone_is_as_suspicious_as_all_of_them(store):
    promise(store, {}, start=10**15, stop=10**15 + 64)
    receipt = read_receipt(store.storage, STAGE, 0, store.fingerprint)
    assert receipt is not None and len(receipt.span) == 64
    ask("verify", store.url)
