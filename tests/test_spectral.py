"""The spectral projection against eigenvectors found by loops over dense gradients, in float64."""

import numpy as np
import pytest
import torch
from test_projections import BLOCKS, TOTAL, examples_of, flat, gradients, random_uses

from streamfluence.capture import Block, Outer
from streamfluence.projections._directions import Directions, trim
from streamfluence.projections._eigen import of_sketch
from streamfluence.projections._selection import pair_energies
from streamfluence.registry import member

N = 60
EXACT = {"dense_limit": 1}  # no covariance of a whole block: pairs of eigenvectors everywhere
SKETCHED = {"dense_limit": 1, "side_limit": 3, "rank": 16}
PLAIN = {"dense_limit": 1, "plain": True}  # moments of each side alone
KINDS = [{}, EXACT, SKETCHED, PLAIN, {**SKETCHED, "plain": True}]
every_kind = pytest.mark.parametrize(
    "options", KINDS, ids=["whole", "pairs", "sketched", "plain", "plain sketched"]
)


def fitted(blocks, uses, width, weight=1.0, examples=N, measured=True, **options):
    projection = member("projections", "spectral")(blocks, width, 0, **options)
    state = projection.update(projection.empty(), uses, weight)
    projection.load(projection.fit(state, examples))
    if measured:
        state = projection.refine_update(projection.refine_empty(), uses, weight)
        projection.load(projection.refine(state, examples))
    return projection


def coloured(uses, seed=1):
    """Give every side of every use its own spectrum, so that no two directions are alike."""
    generator = torch.Generator().manual_seed(seed)

    def turn(side):
        scale = torch.logspace(0.5, -1.5, side.shape[-1])
        mix = torch.randn(side.shape[-1], side.shape[-1], generator=generator)
        return side @ (torch.linalg.qr(mix)[0] * scale)

    return {
        name: [
            Outer(turn(use.left), turn(use.right)) if isinstance(use, Outer) else use for use in of
        ]
        for name, of in uses.items()
    }


@pytest.fixture(scope="module")
def probes():
    return coloured(random_uses(N, 7))


@every_kind
def test_all_directions_together_are_a_rotation_of_the_gradient(probes, options):
    projection, uses = fitted(BLOCKS, probes, TOTAL, **options), random_uses(5, 8)
    rows, expected = projection.apply(uses).double(), flat(uses)
    assert rows.shape == expected.shape
    torch.testing.assert_close(rows @ rows.T, expected @ expected.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [3, 17, 60])
@every_kind
def test_the_record_says_how_much_energy_the_features_hold(probes, width, options):
    projection = fitted(BLOCKS, probes, width, **options)
    facts = projection.facts()
    rows = projection.apply(probes).double().square().mean(0)
    assert facts["energy"] == pytest.approx(float(flat(probes).square().sum(1).mean()), rel=1e-4)
    assert facts["kept"] == pytest.approx(float(rows.sum()) / facts["energy"], rel=1e-4)
    start = 0
    for part in projection.parts:
        block = facts["blocks"][part.name]
        held = float(rows[start : start + part.width].sum())
        assert block["kept"] * block["energy"] == pytest.approx(held, rel=1e-3, abs=1e-6)
        start += part.width


@pytest.mark.parametrize("width", [1, 5, 20])
def test_a_small_block_keeps_its_principal_components(probes, width):
    block = BLOCKS[0]
    rows = gradients(block, probes["linear"]).flatten(1)
    best = torch.linalg.eigvalsh(rows.T @ rows / N).flip(0)[:width].sum()
    projection = fitted((block,), {"linear": probes["linear"]}, width)
    kept = projection.apply({"linear": probes["linear"]}).double().square().mean(0).sum()
    torch.testing.assert_close(kept, best, rtol=1e-4, atol=0.0)


def pair_energies_by_loops(block, use, other=None):
    """Energies of ``other`` in all pairs of eigenvectors of the two weighted moments of ``use``."""
    total = []
    for group in range(block.groups):
        left, right = use.left[:, group].double().numpy(), use.right[:, group].double().numpy()
        lefts, rights = np.zeros((block.left,) * 2), np.zeros((block.right,) * 2)
        for example in range(len(left)):
            for g, a in zip(left[example], right[example], strict=True):
                lefts += (a @ a) * np.outer(g, g)
                rights += (g @ g) * np.outer(a, a)
        bases = [np.linalg.eigh(moment)[1] for moment in (lefts, rights)]
        if other is not None:
            left, right = (s[:, group].double().numpy() for s in (other.left, other.right))
        gradient = np.einsum("eto,eti->eoi", left, right)
        total.append((np.einsum("ol,eoi,ir->elr", bases[0], gradient, bases[1]) ** 2).mean(0))
    return np.concatenate([energy.ravel() for energy in total])


def pair_bases(block, uses):
    """Return the pairs of eigenvectors as directions, columns of ``(size, size)``, float64."""
    groups = []
    for group in range(block.groups):
        lefts, rights = np.zeros((block.left,) * 2), np.zeros((block.right,) * 2)
        for use in uses:
            left, right = use.left[:, group].double().numpy(), use.right[:, group].double().numpy()
            for g, a in zip(
                left.reshape(-1, block.left), right.reshape(-1, block.right), strict=True
            ):
                lefts += (a @ a) * np.outer(g, g)
                rights += (g @ g) * np.outer(a, a)
        groups.append(np.kron(np.linalg.eigh(lefts)[1], np.linalg.eigh(rights)[1]))
    return torch.block_diag(*map(torch.from_numpy, groups))


@pytest.mark.parametrize("width", [1, 4, 13, 40])
def test_the_pairs_kept_are_those_of_largest_energy_over_all_layers_at_once(probes, width):
    blocks = [block for block in BLOCKS if block.name in ("linear", "conv")]
    uses = {block.name: probes[block.name] for block in blocks}
    uses["conv"] = [Outer(3.0 * uses["conv"][0].left, uses["conv"][0].right)]
    every = [pair_energies_by_loops(block, uses[block.name][0]) for block in blocks]
    projection = fitted(blocks, uses, width, candidates_per_feature=50, **EXACT)
    found = np.sort(projection.apply(uses).double().square().mean(0).numpy())[::-1]
    best = np.sort(np.concatenate(every))[::-1][:width]
    np.testing.assert_allclose(found, best, rtol=2e-3, atol=1e-5 * best[0])
    threshold = best[-1] * (1 - 1e-4)
    counts = {b.name: int((e >= threshold).sum()) for b, e in zip(blocks, every, strict=True)}
    widths = {part.name: part.width for part in projection.parts}
    assert {name: widths.get(name, 0) for name in counts} == counts


@pytest.mark.parametrize("width", [1, 4, 13, 40])
def test_rows_decide_which_pairs_are_kept_by_their_energy_over_the_curvature(probes, width):
    # The probes' eigenvectors, but in each the energy of other gradients over the probes' plus the
    # mean over all weights of the block; everything measured by loops over dense gradients.
    blocks = [block for block in BLOCKS if block.name in ("linear", "conv")]
    uses = {block.name: probes[block.name] for block in blocks}
    rows = {b.name: coloured(random_uses(N, 11), seed=3)[b.name] for b in blocks}
    projection = member("projections", "spectral")(
        blocks, width, 0, candidates_per_feature=50, **EXACT
    )
    state = projection.update(projection.empty(), uses, 1.0)
    projection.load(projection.fit(state, N))
    state = projection.refine_update(projection.refine_empty(), uses, 1.0)
    for part in (slice(0, 20), slice(20, N)):
        batch = {n: [Outer(u.left[part], u.right[part]) for u in of] for n, of in rows.items()}
        state = projection.refine_rows(state, batch)
    projection.load(projection.refine(state, N))
    worth = []
    for block in blocks:
        h = pair_energies_by_loops(block, uses[block.name][0])
        r = pair_energies_by_loops(block, uses[block.name][0], rows[block.name][0])
        worth.append(r / (h + h.sum() / block.size))
    best = np.sort(np.concatenate(worth))[::-1][:width]
    mean = {
        part.name: float(gradients(block, uses[block.name]).square().sum((1, 2, 3)).mean())
        / block.size
        for part in projection.parts
        for block in blocks
        if block.name == part.name
    }
    h, r = (projection.apply(u).double().square().mean(0).numpy() for u in (uses, rows))
    floor = np.concatenate([np.full(p.width, mean[p.name]) for p in projection.parts])
    found = np.sort(r / (h + floor))[::-1]
    np.testing.assert_allclose(found, best, rtol=5e-3)


def test_products_of_eigenvalues_add_up_to_the_energy_of_a_block(probes):
    projection = fitted(BLOCKS, probes, TOTAL, measured=False, **EXACT)
    assert projection.facts()["energies"] == "product"
    for block in BLOCKS:
        facts = projection.facts()["blocks"][block.name]
        expected = float(gradients(block, probes[block.name]).square().sum((1, 2, 3)).mean())
        assert facts["energy"] == pytest.approx(expected, rel=1e-4)
        assert facts["kept"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("measured", [True, False])
def test_weights_count_an_example_so_often_and_the_energy_is_a_mean(probes, measured):
    once = fitted(BLOCKS, probes, 17, measured=measured, **EXACT)
    thrice = fitted(BLOCKS, probes, 17, 3.0, 3 * N, measured=measured, **EXACT)
    for name, facts in once.facts()["blocks"].items():
        for key, value in facts.items():
            other = thrice.facts()["blocks"][name][key]
            assert value == pytest.approx(other, rel=1e-4, abs=1e-6), (name, key)
    sample = random_uses(4, 9)
    torch.testing.assert_close(
        once.apply(sample).abs(), thrice.apply(sample).abs(), rtol=1e-3, atol=1e-4
    )


def test_a_wide_side_is_sketched_and_what_is_out_of_reach_is_told():
    generator = torch.Generator().manual_seed(0)
    block = Block("wide", ("w",), 1, 6, 80)
    left = torch.randn(200, 1, 2, 6, generator=generator)
    right = torch.randn(200, 1, 2, 80, generator=generator) * torch.logspace(0, -2, 80)
    uses = {"wide": [Outer(left, right)]}
    total = gradients(block, uses["wide"]).square().sum((1, 2, 3)).mean()
    for rank in (10, 40):
        projection = fitted((block,), uses, 480, 1.0, 200, dense_limit=1, side_limit=20, rank=rank)
        facts = projection.facts()["blocks"]["wide"]
        held = projection.apply(uses).double().square().sum(1).mean()
        assert facts["directions"] == 6 * rank
        assert facts["kept"] == pytest.approx(float(held / total), rel=1e-4)
        # The best that any ``rank`` right directions can hold, by the exact moment.
        weight = left.double().square().sum(-1)
        moment = torch.einsum("ekt,ekti,ektj->ij", weight, right.double(), right.double())
        values = torch.linalg.eigvalsh(moment).flip(0)
        best = float(values[:rank].sum() / values.sum())
        assert facts["kept"] > 0.85 * best
        assert facts["out_of_reach"] == pytest.approx(1 - facts["kept"], rel=1e-4)


@pytest.mark.parametrize("spread, gathered", [(True, True), (False, False)])
def test_pairs_gathered_and_pairs_from_the_whole_rectangle_are_the_same_numbers(spread, gathered):
    """Few pairs of many vectors are gathered, pairs of few vectors are a matrix product."""
    generator = torch.Generator().manual_seed(0)
    block = Block("w", ("w",), 2, 32, 34)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    number = torch.arange(24)
    row, column = (number, number + 5) if spread else (number % 6, number // 6)
    arrays = {
        "places": torch.stack([number % 2, row, column], dim=1),
        "energy": torch.ones(24),
        "left": normal(2, 32, 30),
        "right": normal(2, 34, 31),
    }
    arrays = trim(arrays, torch.ones(24, dtype=torch.bool))
    directions, use = Directions(block, arrays), Outer(normal(4, 2, 3, 32), normal(4, 2, 3, 34))
    g = gradients(block, [use])
    expected = [
        arrays["left"][k, :, r].double() @ g[:, k] @ arrays["right"][k, :, c].double()
        for k, r, c in arrays["places"].tolist()
    ]
    found = directions.features([use]).double()
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-4, atol=1e-3)
    assert directions._gathered(torch.device("cpu")) == gathered


def test_every_batch_is_added_with_its_weight(probes):
    projection = member("projections", "spectral")(BLOCKS, 17, 0, **EXACT)
    halves = [examples_of(probes, part) for part in (slice(0, 30), slice(30, N))]
    whole = projection.update(projection.empty(), probes, 1.0)
    state = projection.empty()
    for half in halves:
        state = projection.update(state, half, 0.25)
    for key in whole:
        scale = float(whole[key].abs().max())
        torch.testing.assert_close(state[key], 0.25 * whole[key], rtol=0.0, atol=1e-6 * scale)


def test_a_sketch_of_full_rank_finds_the_eigenvalues():
    generator = torch.Generator().manual_seed(0)
    side = torch.randn(9, 9, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, 9)
    omega = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    matrix = side @ side.T
    found = of_sketch((matrix @ omega)[None], omega).values[0]
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4 * float(expected[0]))


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_no_pair_among_the_largest_is_missed(count):
    left, right = torch.logspace(0, -2, 6)[None], torch.logspace(0, -1, 8)[None]
    energy, _ = pair_energies(left, right, torch.ones(1), count)
    every = (left[0, :, None] * right[0]).flatten().sort(descending=True).values
    torch.testing.assert_close(energy.sort(descending=True).values[:count], every[:count])
