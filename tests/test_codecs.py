"""Laws of every codec, against float64 references written here."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec, Encoded
from streamfluence.errors import BudgetError, InputError
from streamfluence.options import make
from streamfluence.registry import member, names

FEATURES = 200
CODECS = names("codecs")
SETTINGS = [(name, row_bytes) for name in CODECS for row_bytes in (None, 64, 97)]


def energies_of(features: int = FEATURES, seed: int = 0) -> Tensor:
    """Return a falling spectrum in a shuffled order, so that position says nothing of energy."""
    falling = torch.exp(-torch.arange(features, dtype=torch.float64) / 40)
    return falling[torch.randperm(features, generator=torch.Generator().manual_seed(seed))]


def rows_of(count: int, seed: int = 1, features: int = FEATURES) -> Tensor:
    """Return rows with these energies and norms that span six decades."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, features, generator=generator, dtype=torch.float64)
    norms = 10.0 ** (6 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 3)
    return (rows * energies_of(features).sqrt() * norms).float()


def planned(name: str, row_bytes: int | None, seed: int = 0, **options) -> Codec:
    kind = member("codecs", name)
    return kind(kind.allocate(energies_of(), row_bytes, seed, **options))


def kept_coordinates(codec: Codec, energies: Tensor) -> np.ndarray:
    """Return the coordinates of largest energy, as many as the codec says it stores."""
    return np.argsort(-energies.numpy(), kind="stable")[: codec.facts()["directions"]]


def relative_errors(found: Tensor, wanted: Tensor) -> Tensor:
    found, wanted = found.double(), wanted.double()
    return (found - wanted).norm(dim=1) / wanted.norm(dim=1)


def test_all_members_are_found():
    assert CODECS == ["bands", "float16", "float32", "int8"]


@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
def test_decode_of_encode_is_within_tolerance_at_any_norm(name, row_bytes):
    codec, rows = planned(name, row_bytes), rows_of(400)
    errors = relative_errors(codec.decode(codec.encode(rows)), codec.query(rows))
    assert errors.max() <= codec.tolerance


@pytest.mark.parametrize(("name", "step"), [("float32", 0), ("float16", 2**-11), ("int8", 1 / 127)])
def test_a_kept_number_is_off_by_half_a_step_of_its_rows_largest_at_most(name, step):
    codec, rows = planned(name, None), rows_of(400)
    off = (codec.decode(codec.encode(rows)) - rows).abs().amax(dim=1)
    assert (off <= rows.abs().amax(dim=1) * step / 2 * (1 + 1e-4)).all()


@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
@pytest.mark.parametrize("factor", [2.0**-80, 2.0**-40, 2.0**110])
def test_a_row_of_extreme_norm_is_stored_as_well_as_any(name, row_bytes, factor):
    codec, rows = planned(name, row_bytes), rows_of(50).clamp(-100, 100)
    scaled = codec.decode(codec.encode(rows * factor)).double() / factor
    assert torch.isfinite(scaled).all()
    torch.testing.assert_close(
        scaled, codec.decode(codec.encode(rows)).double(), rtol=1e-3, atol=1e-10
    )


@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
def test_zero_rows_decode_to_zeros_and_disturb_no_other_row(name, row_bytes):
    codec, rows = planned(name, row_bytes), rows_of(7)
    rows[[0, 4]] = 0.0
    decoded = codec.decode(codec.encode(rows))
    assert (decoded[[0, 4]] == 0).all()
    others = [1, 2, 3, 5, 6]
    assert relative_errors(decoded[others], codec.query(rows)[others]).max() <= codec.tolerance


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", range(0, FEATURES, 37))
def test_rows_that_are_not_finite_are_refused_by_number(name, value, column):
    codec, rows = planned(name, 64), rows_of(9)
    rows[[5, 8], column] = value
    with pytest.raises(ValueError, match=r"2 of 9 rows are not finite \(the first is row 5"):
        codec.encode(rows)


@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
def test_query_keeps_the_largest_energies_and_their_inner_products(name, row_bytes):
    codec, a, b = planned(name, row_bytes), rows_of(30), rows_of(20, seed=2)
    kept = kept_coordinates(codec, energies_of())
    wanted = a[:, kept].double() @ b[:, kept].double().T
    found = codec.query(a).double() @ codec.query(b).double().T
    size = a.double().norm(dim=1, keepdim=True) * b.double().norm(dim=1)
    assert ((found - wanted).abs() / size).max() < 1e-6


@pytest.mark.parametrize("name", [name for name in CODECS if name != "bands"])
def test_kept_coordinates_stay_in_their_original_order(name):
    codec, rows = planned(name, 64), rows_of(5)
    kept = np.sort(kept_coordinates(codec, energies_of()))
    assert torch.equal(codec.query(rows), rows[:, kept])


@pytest.mark.parametrize("name", CODECS)
def test_scores_of_stored_rows_are_not_biased(name):
    """Regress estimated on true inner products over many rows, each with a rotation of its own."""
    rows, queries = rows_of(2000, seed=3), rows_of(4, seed=4)
    estimated, exact = [], []
    for seed, part in enumerate(rows.split(100)):
        codec = planned(name, 64, seed=seed)
        kept = kept_coordinates(codec, energies_of())
        unit = part / part[:, kept].norm(dim=1, keepdim=True)
        # Queries near the rows: the error of a row lies along itself when its scale is wrong.
        near = unit[:4] + queries / queries.norm(dim=1, keepdim=True)
        estimated.append((codec.decode(codec.encode(unit)) @ codec.query(near).T).double())
        exact.append(unit[:, kept].double() @ near[:, kept].double().T)
    estimated, exact = torch.cat(estimated).flatten(), torch.cat(exact).flatten()
    slope = (estimated @ exact) / (exact @ exact)
    residual = (estimated - slope * exact).norm() / exact.norm() / len(exact) ** 0.5
    assert abs(slope - 1) < 4 * residual + 1e-4
    assert residual < 0.02  # else the line above would pass a bias of many percent


@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
@pytest.mark.parametrize("count", [0, 1, 512, 1300])
def test_product_equals_decode_times_queries(name, row_bytes, count):
    codec = planned(name, row_bytes)
    encoded, queries = codec.encode(rows_of(count)), codec.query(rows_of(6, seed=5))
    decoded = codec.decode(encoded).double()
    wanted = decoded @ queries.double().T
    size = decoded.norm(dim=1, keepdim=True) * queries.double().norm(dim=1) + 1e-300
    assert decoded.shape == (count, codec.stored)
    assert ((codec.product(queries, encoded).double() - wanted).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("name", CODECS)
def test_results_are_written_into_the_buffer_that_is_given(name):
    codec, rows = planned(name, 64), rows_of(700)
    encoded, queries = codec.encode(rows), codec.query(rows[:3])
    decoded, scores = torch.full((700, codec.stored), torch.nan), torch.full((700, 3), torch.nan)
    assert codec.decode(encoded, out=decoded) is decoded
    assert codec.product(queries, encoded, out=scores) is scores
    assert torch.equal(decoded, codec.decode(encoded))
    assert torch.equal(scores, codec.product(queries, encoded))


@pytest.mark.parametrize("name", CODECS)
def test_blocks_of_any_length_give_the_same_scores_up_to_rounding(name):
    codec, rows = planned(name, 64), rows_of(1100)
    encoded, queries = codec.encode(rows), codec.query(rows[:5])
    cuts = [slice(start, start + 300) for start in range(0, 1100, 300)]
    parts = [Encoded(encoded.codes[cut], encoded.scale[cut]) for cut in cuts]
    whole = codec.product(queries, encoded)
    split = torch.cat([codec.product(queries, part) for part in parts])
    size = rows.norm(dim=1, keepdim=True) * queries.norm(dim=1)
    assert ((whole - split).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
def test_stored_bytes_are_exact_and_within_the_budget(name, row_bytes):
    codec = planned(name, row_bytes)
    encoded = codec.encode(rows_of(3))
    assert encoded.codes.nbytes + encoded.scale.nbytes == 3 * codec.stored_bytes
    assert row_bytes is None or codec.stored_bytes <= row_bytes
    facts = codec.facts()
    assert facts["code_bytes"] + facts["scale_bytes"] == codec.stored_bytes
    assert facts["directions"] + facts["directions_dropped"] == FEATURES


@pytest.mark.parametrize("name", CODECS)
def test_what_is_stored_is_contiguous(name):
    encoded = planned(name, 64).encode(rows_of(3))
    assert encoded.scale.is_contiguous() and encoded.codes.is_contiguous()


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_saved_and_loaded_stores_and_reads_the_same_bytes(name):
    arrays = member("codecs", name).allocate(energies_of(), 64, seed=3)
    saved = io.BytesIO()
    np.savez(saved, **{key: array.numpy() for key, array in arrays.items()})
    saved.seek(0)
    loaded = {key: torch.from_numpy(array) for key, array in np.load(saved).items()}
    first, second = member("codecs", name)(arrays), member("codecs", name)(loaded).to("cpu")
    a, b = first.encode(rows_of(40)), second.encode(rows_of(40))
    assert torch.equal(a.codes, b.codes) and torch.equal(first.decode(a), second.decode(a))
    assert a.scale.numpy().tobytes() == b.scale.numpy().tobytes()
    assert first.facts() == second.facts()


@pytest.mark.parametrize("name", CODECS)
def test_the_same_seed_gives_the_same_plan(name):
    first, second = (member("codecs", name).allocate(energies_of(), 64, seed=9) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", CODECS)
def test_the_dtype_and_strides_of_rows_change_nothing(name):
    codec, rows = planned(name, 64), rows_of(20)
    strided = rows.T.contiguous().T
    assert torch.equal(codec.encode(rows.double()).codes, codec.encode(rows).codes)
    assert torch.equal(codec.encode(strided).codes, codec.encode(rows).codes)


@pytest.mark.parametrize("name", CODECS)
def test_rows_of_another_width_are_refused(name):
    codec = planned(name, 64)
    for use in (codec.encode, codec.query):
        with pytest.raises(ValueError, match=r"planned for \(example, 200\)"):
            use(rows_of(3)[:, 1:])


@pytest.mark.parametrize(
    ("name", "most"), [("bands", 2), ("float16", 5), ("float32", 3), ("int8", 4)]
)
def test_a_row_too_short_for_one_direction_is_refused_and_one_byte_more_is_not(name, most):
    for row_bytes in (-1, 0, most):
        with pytest.raises(BudgetError, match="raise the bytes per row"):
            planned(name, row_bytes)
    assert planned(name, most + 1).stored_bytes == most + 1


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("energies", [[], [1.0, -1.0], [1.0, float("nan")], [[1.0]]])
def test_energies_that_mean_nothing_are_refused(name, energies):
    with pytest.raises(InputError, match="energ"):
        member("codecs", name).allocate(torch.tensor(energies), 64, 0)


@pytest.mark.parametrize("name", CODECS)
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"codec '{name}' has no option 'depth'; .*it knows: "):
        make("codecs", name, {"depth": 3}, energies_of(), 64, 0)


@pytest.mark.parametrize("name", [name for name in CODECS if name != "bands"])
def test_energy_lost_is_the_share_that_is_not_kept(name):
    codec, energies = planned(name, 64), energies_of()
    kept = energies[kept_coordinates(codec, energies)].sum()
    assert codec.facts()["energy_lost"] == pytest.approx(1 - float(kept / energies.sum()))
    assert planned(name, None).facts()["energy_lost"] == 0


def test_int8_codes_are_the_rounded_share_of_the_largest():
    codec, rows = planned("int8", None), rows_of(50)
    wanted = np.rint(rows.double().numpy() / np.abs(rows.numpy()).max(1, keepdims=True) * 127)
    off = np.abs(codec.encode(rows).codes.numpy() - wanted)
    assert off.max() <= 1 and (off > 0).mean() < 1e-3  # float32 may round a tie otherwise


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "row_bytes"), SETTINGS)
def test_a_gpu_stores_what_the_cpu_stores(name, row_bytes):
    codec, rows = planned(name, row_bytes), rows_of(700)
    rows[3] = 0.0
    on_gpu = codec.to("cuda")
    here, there = codec.encode(rows), on_gpu.encode(rows.cuda())
    same = (here.codes == there.codes.cpu()).all(dim=1)
    assert same.float().mean() > 0.8  # a rotated number on a threshold may fall either way
    there_read_here = codec.decode(Encoded(there.codes.cpu(), there.scale.cpu()))
    torch.testing.assert_close(on_gpu.decode(there).cpu(), there_read_here, rtol=1e-6, atol=0)
    kept = rows.norm(dim=1) > 0
    errors = relative_errors(there_read_here[kept], codec.query(rows)[kept])
    assert errors.max() <= codec.tolerance
    queries = codec.query(rows[:5])
    scores = on_gpu.product(queries.cuda(), there).cpu()
    size = rows.norm(dim=1, keepdim=True) * queries.norm(dim=1)
    assert ((scores - there_read_here @ queries.T).abs() <= 1e-5 * size).all()
