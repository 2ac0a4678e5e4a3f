"""The parts of the codec ``bands``: allocation, levels, packing, rotation, and what they add up to."""

from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from streamfluence.codecs import _allocation, _packing
from streamfluence.codecs._allocation import SCALE_BYTES, allocate
from streamfluence.codecs._bfloat16 import from_bits, to_bits
from streamfluence.codecs._levels import distortions, lloyd_max
from streamfluence.codecs._nearest import nearest, nearest_tables
from streamfluence.codecs._rotation import PIECE, deal, draw_rotation, rotate, split
from streamfluence.codecs.bands import Bands
from streamfluence.errors import BudgetError, InputError

ALL_BITS = range(1, 9)


def bytes_of(bits: np.ndarray) -> int:
    return int(bits.sum()) + SCALE_BYTES * len(set(bits[bits > 0].tolist()))


def lost_by(bits: np.ndarray, energies: np.ndarray, distortion: list[float]) -> float:
    return float((energies * np.asarray(distortion)[bits]).sum())


@cache
def every_allocation(n_groups: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all assignments of 0..most bits to groups, in any order, and the bytes of each."""
    every = np.array(list(product(range(most + 1), repeat=n_groups)))
    return every, np.array([bytes_of(bits) for bits in every])


group_energies = st.lists(st.floats(0, 10), min_size=1, max_size=5).map(
    lambda values: np.sort(np.array(values))[::-1].copy()
)


@given(group_energies, st.integers(-3, 26))
def test_allocation_equals_exhaustive_search(energies, row_bytes):
    distortion = distortions(3)
    every, cost = every_allocation(len(energies), 3)
    fits = every[(cost <= row_bytes) | (every.sum(axis=1) == 0)]
    best = (energies * np.array(distortion)[fits]).sum(axis=1).min()
    found = allocate(energies, row_bytes, distortion)
    assert lost_by(found, energies, distortion) == pytest.approx(best, rel=1e-12, abs=1e-300)
    assert bytes_of(found) <= max(row_bytes, 0)


spectra = st.tuples(st.integers(1, 60), st.floats(0, 4), st.floats(1e-12, 1e12)).map(
    lambda given: given[2] * np.arange(1.0, given[0] + 1) ** -given[1]
)


@given(spectra, st.integers(0, 600), st.integers(1, 8))
def test_the_budget_is_never_exceeded_and_one_byte_more_never_loses_more(energies, row_bytes, most):
    distortion = distortions(most)
    less, more = (allocate(energies, row_bytes + extra, distortion) for extra in (0, 1))
    assert bytes_of(less) <= row_bytes and bytes_of(more) <= row_bytes + 1
    assert less.max() <= most and (np.diff(less) <= 0).all()
    lost_less, lost_more = (lost_by(bits, energies, distortion) for bits in (less, more))
    assert lost_more <= lost_less * (1 + 1e-12)


@pytest.mark.parametrize("row_bytes", [7, 60, 200, 600])
def test_groups_that_share_their_bits_fit_as_well_and_lose_little_more(monkeypatch, row_bytes):
    energies, distortion = np.arange(1.0, 251) ** -1.5, distortions(8)
    alone = allocate(energies, row_bytes, distortion)
    monkeypatch.setattr(_allocation, "MOST_ENTRIES", 250 * 9 * row_bytes // 4)
    joined = allocate(energies, row_bytes, distortion)
    assert bytes_of(joined) <= row_bytes and (np.diff(joined) <= 0).all()
    lost = lost_by(alone, energies, distortion)
    assert lost <= lost_by(joined, energies, distortion) < 2 * lost


def test_allocation_approaches_continuous_reverse_water_filling():
    """With the ideal distortion 4^-b, bits are within one of log2(e / level) / 2 and centred on it."""
    energies = np.exp(-np.arange(400) / 40.0)
    ideal = [4.0**-b for b in range(9)]
    bits = allocate(energies, 600, ideal)
    budget = 600 - SCALE_BYTES * len(set(bits[bits > 0].tolist()))
    low, high = 1e-12, 1.0
    for _ in range(100):
        level = (low * high) ** 0.5
        wanted = np.maximum(0, np.log2(energies / level) / 2)
        low, high = (level, high) if wanted.sum() > budget else (low, level)
    assert len(set(bits)) >= 5 and (wanted > 0).sum() < 300
    assert np.abs(bits - wanted).max() < 1
    assert abs((bits - wanted)[wanted > 1].mean()) < 0.05
    continuous = np.minimum(energies, level).sum()
    assert continuous <= lost_by(bits, energies, ideal) < 1.1 * continuous


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_every_level_is_the_mean_of_a_gaussian_between_midpoints(bits):
    levels = lloyd_max(bits)[0].numpy()
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    for level, low, high in list(zip(levels, edges[:-1], edges[1:], strict=True))[
        :: max(1, 2**bits // 16)
    ]:
        mean = quad(lambda x: x * norm.pdf(x), low, high, epsabs=1e-15)[0]
        assert level == pytest.approx(mean / quad(norm.pdf, low, high, epsabs=1e-15)[0], abs=1e-9)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_distortion_is_the_mean_squared_distance_to_the_nearest_level(bits):
    x = np.linspace(-9, 9, 400_001)
    levels = lloyd_max(bits)[0].numpy()
    near = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
    mean = (norm.pdf(x) * (x - levels[near]) ** 2).sum() * (x[1] - x[0])
    assert lloyd_max(bits)[1] == pytest.approx(mean, rel=1e-6)


def test_distortions_agree_with_the_table_of_max_and_are_convex():
    found = np.array(distortions(8))
    np.testing.assert_allclose(
        found[:6], [1, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499], rtol=3e-3
    )
    gains = -np.diff(found)
    assert (gains > 0).all() and (np.diff(gains) < 0).all()


@pytest.mark.parametrize("bits", ALL_BITS)
def test_the_nearest_level_is_that_of_a_search_even_beside_a_threshold(bits):
    levels = lloyd_max(bits)[0].float()
    thresholds = (levels[1:] + levels[:-1]) / 2
    beside = torch.stack(
        [torch.nextafter(thresholds, thresholds + side) for side in (-1, 1)]
    ).flatten()
    cells = torch.arange(-1100, 1100) / 128  # and beside the edges of the cells
    values = torch.cat(
        [thresholds, beside, cells, cells.nextafter(cells - 1), 3 * torch.randn(10_000)]
    )
    values = torch.cat([values, torch.tensor([0.0, -0.0, -1e-30, 1e-30, -1e30, 1e30])])
    wanted = np.searchsorted(thresholds.numpy(), values.numpy())
    np.testing.assert_array_equal(nearest(values, nearest_tables(levels)).numpy(), wanted)


def literal_bytes(codes: np.ndarray, bits: int) -> bytes:
    """Pack one row by the words of the module: groups of eight codes, lookups, planes."""
    lanes, groups = _packing.LANES[bits], len(codes) // 8
    integers = [0] * groups
    for lookup in range(8 // lanes):
        for group in range(groups):
            for lane in range(lanes):
                code = int(codes[(lookup * groups + group) * lanes + lane])
                integers[group] += code << ((lookup * lanes + lane) * bits)
    columns = [integer.to_bytes(bits, "little") for integer in integers]
    return bytes(column[plane] for plane in range(bits) for column in columns)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("width", [8, 24, 136])
def test_packing_is_what_its_description_says(bits, width):
    codes = np.random.default_rng(bits).integers(0, 2**bits, size=(5, width))
    packed = _packing.pack(torch.from_numpy(codes), bits)
    assert packed.dtype == torch.uint8
    assert [row.numpy().tobytes() for row in packed] == [literal_bytes(row, bits) for row in codes]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_that_fill_bytes_evenly_lie_in_plain_order(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, size=64)
    whole = sum(int(code) << (place * bits) for place, code in enumerate(codes))
    packed = _packing.pack(torch.from_numpy(codes)[None], bits)
    assert packed.numpy().tobytes() == whole.to_bytes(8 * bits, "little")


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("width", [8, 24, 520])
def test_unpacking_gives_the_level_of_every_code(bits, width):
    codes = torch.from_numpy(np.random.default_rng(bits).integers(0, 2**bits, size=(37, width)))
    levels = torch.randn(2**bits)
    beside = torch.zeros(37, 3, dtype=torch.uint8)  # bytes of other bands
    row = torch.cat([beside, _packing.pack(codes, bits), beside], dim=1)
    index = torch.empty(codes.numel() // _packing.LANES[bits], dtype=torch.int32)
    table, out = _packing.lookup_table(levels, bits), torch.full((37, width), torch.nan)
    found = _packing.unpack(row[:, 3:-3], bits, table, index, out)
    assert found is out
    assert torch.equal(out, levels[codes])


@given(st.floats(0, float(np.finfo(np.float32).max), width=32))
def test_scales_round_to_the_nearest_bfloat16(value):
    exact = torch.tensor([value], dtype=torch.float32)
    found = from_bits(to_bits(exact))
    wanted = exact.to(torch.bfloat16).float().clamp_max(torch.finfo(torch.bfloat16).max)
    assert torch.equal(found, wanted)


def test_a_scale_halfway_goes_to_the_even_neighbour():
    halfway = torch.tensor([0x3F808000, 0x3F818000], dtype=torch.int32).view(torch.float32)
    assert to_bits(halfway).tolist() == [0x3F80, 0x3F82]


@pytest.mark.parametrize("width", [8, 512, 520, 1504])
def test_a_rotation_is_orthogonal_and_acts_on_each_piece_alone(width):
    pieces = split(draw_rotation(width, seed=5, band=3), width)
    assert max(len(piece) for piece in pieces) <= PIECE
    dense = torch.block_diag(*pieces).double()
    assert (dense @ dense.T - torch.eye(width)).abs().max() < 1e-6
    rows = torch.randn(4, width)
    torch.testing.assert_close(
        rotate(rows, pieces).double(), rows.double() @ dense, atol=1e-5, rtol=0
    )


def test_pieces_of_a_band_have_nearly_equal_energy():
    energies = 1 / torch.arange(10.0, 10 + 2048)
    share = torch.stack([energies[piece].sum() for piece in deal(2048)])
    assert share.max() / share.min() < 1.03
    assert sorted(torch.cat(deal(1504)).tolist()) == list(range(1504))


def test_seeds_bands_and_pieces_have_rotations_of_their_own():
    first = split(draw_rotation(1024, seed=0, band=1), 1024)
    others = [
        first[1],
        split(draw_rotation(1024, 0, 2), 1024)[0],
        split(draw_rotation(1024, 1, 1), 1024)[0],
    ]
    assert all((first[0] * other).sum().abs() < 100 for other in others)  # 512 if they were equal
    assert torch.equal(first[0], split(draw_rotation(1024, 0, 1), 1024)[0])


def falling(features: int = 300) -> Tensor:
    return torch.exp(-torch.arange(features, dtype=torch.float64) / 30)


def gaussian_rows(count: int, energies: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(energies), generator=generator) * energies.sqrt().float()


def spans(codec_arrays: dict[str, Tensor]) -> list[slice]:
    ends = [0, *codec_arrays["width"].cumsum(0).tolist()]
    return [slice(*pair) for pair in pairwise(ends)]


def test_each_band_keeps_the_inner_product_of_a_row_with_itself():
    arrays = Bands.allocate(falling(), 96, seed=0)
    codec, rows = Bands(arrays), gaussian_rows(300, falling())
    exact, decoded = codec.query(rows).double(), codec.decode(codec.encode(rows)).double()
    assert len(spans(arrays)) >= 3
    for band in spans(arrays):
        own = (exact[:, band] ** 2).sum(dim=1)
        ratio = (exact[:, band] * decoded[:, band]).sum(dim=1) / own
        assert (ratio - 1).abs().max() < 2**-8 + 1e-6  # half a unit of bfloat16's eight bits
        assert abs(ratio.mean() - 1) < 2**-10


@pytest.mark.parametrize("row_bytes", [24, 48, 96, 200])
def test_the_share_of_energy_that_is_lost_is_the_share_that_was_foretold(row_bytes):
    arrays = Bands.allocate(falling(), row_bytes, seed=0)
    codec, rows = Bands(arrays), gaussian_rows(2000, falling())
    exact, decoded = codec.query(rows).double(), codec.decode(codec.encode(rows)).double()
    explained = 0.0
    for band in spans(arrays):
        overlap = (exact[:, band] * decoded[:, band]).sum(dim=1)
        explained += float((overlap**2 / (decoded[:, band] ** 2).sum(dim=1)).sum())
    lost = 1 - explained / float((rows.double() ** 2).sum())
    assert lost == pytest.approx(codec.facts()["energy_lost"], rel=0.1)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_fixed_width_and_number_of_bits_is_what_is_stored(bits):
    codec = Bands(Bands.allocate(falling(), None, 0, width=64, bits=bits))
    assert codec.stored_bytes == 8 * bits + SCALE_BYTES
    assert codec.facts()["directions_by_bits"] == {str(bits): 64}


def test_a_fixed_width_that_does_not_fit_is_refused_with_its_bytes():
    Bands.allocate(falling(), 258, 0, width=256, bits=8)
    with pytest.raises(BudgetError, match="258 bytes a row, its scale included, but 257"):
        Bands.allocate(falling(), 257, 0, width=256, bits=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 64}, "width and bits together"),
        ({"bits": 4}, "width and bits together"),
        ({"width": 64, "bits": 9}, "bits must be 1 to 8, got 9"),
        ({"width": 301, "bits": 1}, "width 301 was asked, but rows have 300"),
        ({"width": 0, "bits": 1}, "width 0 was asked"),
        ({"max_bits": 0}, "max_bits must be 1 to 8, got 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Bands.allocate(falling(), 256, 0, **options)


def test_the_most_bits_hold():
    facts = Bands(Bands.allocate(falling(), 200, 0, max_bits=3)).facts()
    assert max(int(bits) for bits in facts["directions_by_bits"]) == 3


def test_without_a_budget_every_coordinate_has_the_most_bits():
    assert Bands(Bands.allocate(falling(), None, 0)).facts()["directions_by_bits"] == {"8": 300}


def test_coordinates_without_energy_are_not_stored():
    energies = torch.cat([torch.zeros(40), torch.ones(16), torch.zeros(40)])
    codec = Bands(Bands.allocate(energies, 1000, 0))
    assert codec.facts()["directions_by_bits"] == {"8": 16}
    with pytest.raises(InputError, match="no coordinate has any energy"):
        Bands.allocate(torch.zeros(40), 1000, 0)


def test_a_last_group_that_is_not_full_changes_no_inner_product():
    energies = falling(13)
    codec, rows = Bands(Bands.allocate(energies, None, 0)), gaussian_rows(20, energies)
    assert codec.facts()["directions"] == 13 and codec.stored == 16
    torch.testing.assert_close(codec.query(rows) @ codec.query(rows).T, rows @ rows.T)
    torch.testing.assert_close(codec.decode(codec.encode(rows)) @ codec.query(rows).T, rows @ rows.T,
                               atol=0.15, rtol=0)  # fmt: skip


def test_rows_that_are_one_spike_are_stored_without_bias_too():
    """No row looks less Gaussian; over rotations the mean of its decoded form is the spike itself."""
    energies, spike = torch.ones(64), torch.zeros(1, 64)
    spike[0, 5] = 3.0
    turned_back = []
    for seed in range(300):
        codec = Bands(Bands.allocate(energies, None, seed, width=64, bits=1))
        turned_back.append(codec.decode(codec.encode(spike)) @ codec.query(torch.eye(64)).T)
    mean, spread = torch.cat(turned_back).mean(dim=0), torch.cat(turned_back).std(dim=0)
    assert ((mean - spike[0]).abs() < 5 * spread / 300**0.5 + 3 * 2**-10).all()
    assert spread.max() < 1


def test_the_plan_of_2048_directions_stays_below_10_megabytes():
    arrays = Bands.allocate(torch.ones(2048), None, 0)
    assert sum(array.nbytes for array in arrays.values()) < 10e6


@given(st.integers(1, 60), st.integers(0, 80), st.integers(1, 8), st.integers(0, 3))
def test_any_plan_fits_its_bytes_and_reads_what_it_stores(features, row_bytes, max_bits, seed):
    energies = falling(features)
    try:
        codec = Bands(Bands.allocate(energies, row_bytes, seed, max_bits=max_bits))
    except BudgetError:
        assert row_bytes < 3
        return
    rows = gaussian_rows(6, energies, seed)
    encoded = codec.encode(rows)
    assert encoded.codes.nbytes + encoded.scale.nbytes == 6 * codec.stored_bytes <= 6 * row_bytes
    decoded, exact = codec.decode(encoded).double(), codec.query(rows).double()
    ratio = (decoded * exact).sum(dim=1) / (exact**2).sum(dim=1)
    assert (ratio - 1).abs().max() < 2**-8 + 1e-5


@pytest.mark.parametrize("row_bytes", [24, 48, 96])
def test_bits_go_where_they_make_the_error_of_a_score_small(row_bytes):
    # Rows and queries of the same energies: the expected squared error of <q, y>, measured, is
    # smaller than where bits follow the rows' energy alone, or its cube.
    generator = torch.Generator().manual_seed(0)
    energies = 1 / (1 + (torch.arange(400, dtype=torch.float64) / 30) ** 2)
    rows, queries = (torch.randn(n, 400, generator=generator) for n in (600, 300))
    rows, queries = rows * energies.sqrt().float(), queries * energies.sqrt().float()
    errors = {}
    for power in (0.5, 1.0, 1.5):
        codec = Bands(Bands.allocate(energies**power, row_bytes, 0))
        decoded = codec.product(codec.query(queries), codec.encode(rows))
        errors[power] = float((decoded - rows @ queries.T).square().mean())
    assert errors[1.0] < 0.98 * errors[0.5]
    assert errors[1.0] < 0.98 * errors[1.5]
