"""A run in an object store keeps every promise of one in a file system.

The server speaks real S3 over a loopback socket; obstore is the same client that talks to AWS.
"""

import contextlib
import io
import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

pytest.importorskip(
    "moto.server", reason="moto[server] is not installed, so there is no S3 to talk to"
)
obstore = pytest.importorskip("obstore", reason="obstore is not installed")

from moto.server import ThreadedMotoServer  # noqa: E402
from obstore.store import MemoryStore, S3Store  # noqa: E402
from small_job import write_job  # noqa: E402

from streamfluence.cli import main  # noqa: E402
from streamfluence.errors import DamageError, InputError, StorageError  # noqa: E402
from streamfluence.layout import FORMAT_VERSION, Span, collect_stage  # noqa: E402
from streamfluence.store import RunStore, grid, open_storage, storage_object  # noqa: E402
from streamfluence.store.storage_object import ObjectStorage  # noqa: E402

STAGE = collect_stage("train", 0)
MANIFEST = {"rows": {"bytes": 64}, "seed": 0}


@pytest.fixture(scope="module")
def endpoint():
    # Werkzeug prints its requests to the standard error stream that it finds when it starts.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def url(endpoint, monkeypatch, request):
    """Return the URL of a run that does not exist yet, in a bucket of the test's own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = f"bucket{abs(hash(request.node.name)) % 10**9}"
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")):
        pass
    return f"s3://{bucket}/runs/first run"


@pytest.fixture
def store(url):
    return RunStore.create(url, MANIFEST)


@pytest.fixture
def tiny_chunks(monkeypatch):
    monkeypatch.setattr(grid, "INNER_BYTES", 1 << 10)
    monkeypatch.setattr(grid, "SHARD_BYTES", 8 << 10)


def arrays_of(partition, length=400):
    rng = np.random.default_rng(partition)
    rows = rng.integers(0, 255, (length, 64), dtype=np.uint8)
    return {"rows": rows, "loss": rng.standard_normal(length, np.float32)}


def test_a_run_is_created_once_and_opened_by_its_url(store, url):
    assert RunStore.open(url).manifest == {"format_version": FORMAT_VERSION, **MANIFEST}
    assert RunStore.create(url, MANIFEST).fingerprint == store.fingerprint
    with pytest.raises(InputError, match=r"rows\.bytes: stored 64, asked 32"):
        RunStore.create(url, {**MANIFEST, "rows": {"bytes": 32}})
    with pytest.raises(InputError, match="is not a run"):
        RunStore.open(f"{url}/other")


def test_a_put_whose_answer_was_lost_is_won_by_its_repetition(url):
    storage = open_storage(url)
    assert storage.create("a.json", b"mine")
    assert storage.create("a.json", b"mine")
    assert not storage.create("a.json", b"other")
    assert storage.read("a.json") == b"mine"


def test_of_racing_writers_exactly_one_creates_a_document(url):
    for round_number in range(10):
        start, won = threading.Barrier(6), []

        def create(writer, path=f"doc{round_number}.json", start=start, won=won):
            storage = open_storage(url)
            start.wait()
            won.append((storage.create(path, b"%d" % writer * 1000), writer))

        threads = [threading.Thread(target=create, args=(writer,)) for writer in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [writer for created, writer in won if created]
        assert len(won) == 6 and len(winners) == 1
        assert open_storage(url).read(f"doc{round_number}.json") == b"%d" % winners[0] * 1000


@pytest.mark.parametrize("compressor", ["none", "zstd"])
def test_a_committed_partition_comes_back_bit_for_bit(store, tiny_chunks, compressor):
    arrays = arrays_of(3)
    made = store.commit(
        STAGE, 3, arrays, {"unit": "loss"}, {"n": 1}, {"rows": compressor}, span=Span(0, 400)
    )
    receipt = RunStore.open(store.url).receipts(STAGE)[3]
    assert receipt == made
    for name, values in arrays.items():
        np.testing.assert_array_equal(store.read(receipt, name), values)
    out = np.empty((33, 64), np.uint8)
    blocks = [block.copy() for block in store.read_blocks(receipt, "rows", 33, out)]
    np.testing.assert_array_equal(np.concatenate(blocks), arrays["rows"])
    np.testing.assert_array_equal(
        store.read(receipt, "rows", rows=slice(100, 203)), arrays["rows"][100:203]
    )
    assert store.read_attributes(receipt) == {"unit": "loss"}
    assert store.missing(STAGE, 5) == [0, 1, 2, 4] and store.stages() == [STAGE]
    assert store.verify() == [] and store.leftovers() == []


def test_plain_zarr_opens_an_attempt_in_the_bucket(store):
    receipt = store.commit(STAGE, 0, arrays_of(0))
    client = S3Store.from_url(f"{store.url}/{receipt.path}")
    group = zarr.open_group(zarr.storage.ObjectStore(client, read_only=True), mode="r")
    np.testing.assert_array_equal(group["rows"][:], arrays_of(0)["rows"])


def test_an_object_larger_than_the_read_ahead_window_is_read_whole(store, monkeypatch):
    monkeypatch.setattr(storage_object, "_WINDOW_BYTES", 1 << 20)
    monkeypatch.setattr(storage_object, "_REQUEST_BYTES", 300 << 10)
    rows = np.random.default_rng(0).integers(0, 255, (50_000, 100), dtype=np.uint8)
    receipt = store.commit(STAGE, 0, {"rows": rows})
    np.testing.assert_array_equal(store.read(receipt, "rows"), rows)
    assert store.verify() == []


def test_the_first_receipt_wins_and_the_loser_removes_its_attempt(store, monkeypatch):
    create, rival = ObjectStorage.create, RunStore.open(store.url)

    def overtaken(self, path, data):
        monkeypatch.setattr(ObjectStorage, "create", create)
        rival.first = rival.commit(STAGE, 0, arrays_of(0))
        return create(self, path, data)

    monkeypatch.setattr(ObjectStorage, "create", overtaken)
    assert store.commit(STAGE, 0, arrays_of(0)) == rival.first
    assert store.leftovers() == [] and store.verify() == []


@pytest.mark.parametrize("name", ["rows/c.0.0", "rows/zarr.json", "loss/c.0"])
@pytest.mark.parametrize("kind", ["missing", "shorter", "flipped"])
def test_damage_is_found_discarded_and_repaired(store, kind, name):
    receipt = store.commit(STAGE, 0, arrays_of(0))
    path = f"{receipt.path}/{name}"
    data = bytearray(store.storage.read(path))
    data[7] ^= 1
    if kind == "missing":
        store.storage.remove(path)
    else:
        store.storage.write(path, data if kind == "flipped" else bytes(data[:-1]))
    with pytest.raises(DamageError, match=f"partition 0, object {name}"):
        store.read(receipt, name.partition("/")[0])
    assert [problem.object for problem in store.verify()] == [path]
    assert store.discard(STAGE, 0) and not store.discard(STAGE, 0)
    assert store.missing(STAGE, 1) == [0]
    store.commit(STAGE, 0, arrays_of(0))
    assert [leftover.path for leftover in store.collect_garbage()] == [receipt.path]
    assert store.verify() == [] and store.leftovers() == []


def test_swapped_shards_are_found(store):
    one, other = (store.commit(STAGE, k, arrays_of(k)) for k in (0, 1))
    paths = [f"{receipt.path}/rows/c.0.0" for receipt in (one, other)]
    contents = [store.storage.read(path) for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        store.storage.write(path, content)
    with pytest.raises(DamageError, match=r"object rows/c\.0\.0"):
        next(store.read_blocks(one, "rows", 1))
    assert len(store.verify()) == 2


def test_finalise_builds_canonical_arrays_by_copies_inside_the_store(store, tiny_chunks):
    whole = []
    for checkpoint in range(2):
        parts = [arrays_of(10 * checkpoint + k, length) for k, length in enumerate((128, 128, 50))]
        whole.append(np.concatenate([part["rows"] for part in parts]))
        for partition, part in enumerate(parts):
            store.commit(collect_stage("train", checkpoint), partition, part)
    for _ in range(2):
        path = store.finalise("train", 2, 3)
        client = S3Store.from_url(f"{store.url}/{path}")
        group = zarr.open_group(zarr.storage.ObjectStore(client, read_only=True), mode="r")
        for checkpoint in range(2):
            np.testing.assert_array_equal(group["rows"][checkpoint], whole[checkpoint])


def test_a_listing_of_more_receipts_than_one_answer_holds_is_complete(store):
    store.commit(STAGE, 0, {"x": np.ones(1)})
    content = store.storage.read(f"receipts/{STAGE}/00000000.json")
    paths = [f"receipts/{STAGE}/{partition:08d}.json" for partition in range(1, 1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: store.storage.write(path, content), paths))
    assert store.missing(STAGE, 1102) == [1100, 1101]


def test_a_server_that_is_gone_is_a_storage_error(url):
    dead = S3Store(
        "bucket",
        endpoint="http://127.0.0.1:9",
        client_options={"connect_timeout": "300ms", "allow_http": True},
        retry_config={"max_retries": 0},
    )
    for action in (lambda: RunStore.open(dead), lambda: RunStore.create(dead, MANIFEST)):
        with pytest.raises(StorageError, match="check the bucket, the credentials and the network"):
            action()


def test_a_bucket_that_does_not_exist_is_refused_when_written_to(url):
    with pytest.raises(StorageError, match="cannot create"):
        RunStore.create("s3://no-such-bucket/run", MANIFEST)


def test_any_obstore_store_holds_a_run():
    memory = MemoryStore()
    store = RunStore.create(memory, MANIFEST)
    receipt = store.commit(STAGE, 0, arrays_of(0))
    np.testing.assert_array_equal(RunStore.open(memory).read(receipt, "rows"), arrays_of(0)["rows"])
    assert store.verify() == [] and store.storage.local_path("manifest.json") is None


def test_an_address_that_obstore_does_not_know_is_refused():
    with pytest.raises(InputError, match="cannot use"):
        RunStore.open("nonsense://bucket/run")


@pytest.mark.parametrize("path", ["../x.json", "/x.json", "a//b", ""])
def test_a_path_that_leaves_the_run_is_refused(store, path):
    with pytest.raises(InputError, match="leaves the run"):
        store.read_document(path)


def test_every_command_works_on_a_run_in_an_object_store(url, tmp_path):
    def ok(*arguments):
        told = CliRunner().invoke(main, [str(a) for a in arguments])
        assert told.exit_code == 0, told.output
        return told.stdout

    job = write_job(tmp_path, n=80)
    ok("run", job, tmp_path / "local")
    ok("run", job, url)
    assert json.loads(ok("status", url, "--json"))["complete"]
    assert ok("top", url, "0", "--json") == ok("top", tmp_path / "local", "0", "--json")
    ok("finalise", url)
    ok("export", url, tmp_path / "top.csv")
    run, receipt = RunStore.open(url), RunStore.open(url).receipt("collect/train/0", 1)
    before = run.read(receipt, "rows")
    (name,) = (n for n in receipt.objects if n.startswith("rows/c"))
    path = f"{receipt.path}/{name}"
    data = bytearray(run.storage.read(path))
    data[20] ^= 1
    run.storage.write(path, bytes(data))
    told = CliRunner().invoke(main, ["verify", url, "--full"])
    assert told.exit_code == 3 and "collect/train/0 partition 1" in told.output
    ok("repair", url)
    ok("verify", url, "--full")
    np.testing.assert_array_equal(run.read(run.receipt("collect/train/0", 1), "rows"), before)
