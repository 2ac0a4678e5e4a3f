"""Laws that every projection obeys, run over all members of the family."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from streamfluence.capture import Block, Capture, Explicit, Indexed, Outer, dense_gradient
from streamfluence.registry import member, names

BLOCKS = (
    Block("linear", ("linear.weight", "linear.bias"), 1, 5, 4),
    Block("conv", ("conv.weight",), 3, 2, 5),
    Block("embedding", ("embedding.weight",), 1, 7, 3),
    Block("norm", ("norm.weight", "norm.bias"), 1, 2, 6),
    Block("tied", ("tied.weight",), 1, 6, 4),
    Block("twice", ("twice.weight",), 1, 3, 4),
)
TOTAL = sum(block.size for block in BLOCKS)
MEMBERS = names("projections")
RANDOM = [name for name in MEMBERS if member("projections", name).unbiased and name != "identity"]
FITTED = [name for name in MEMBERS if member("projections", name).fitted]


def random_uses(examples, seed, dtype=torch.float32):
    """Return uses of every kind; the last position of an embedding is padding."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    def indexed(block, positions):
        right = normal(examples, positions, block.right)
        right[:, -1] = 0.0
        return Indexed(torch.randint(block.left, (examples, positions), generator=generator), right)

    def outer(block, positions):
        shape = examples, block.groups, positions
        return Outer(normal(*shape, block.left), normal(*shape, block.right))

    linear, conv, embedding, norm, tied, twice = BLOCKS
    return {
        "linear": [outer(linear, 3)],
        "conv": [outer(conv, 4)],
        "embedding": [indexed(embedding, 5)],
        "norm": [Explicit(normal(examples, norm.groups, norm.left, norm.right))],
        "tied": [indexed(tied, 4), outer(tied, 4)],
        "twice": [outer(twice, 2), outer(twice, 3)],
    }


def gradients(block, uses):
    """Return one block's gradients by looping over examples, groups and positions, float64."""
    total = 0.0
    for use in uses:
        if isinstance(use, Explicit):
            total = total + use.gradient.double()
            continue
        examples, positions = use.right.shape[0], use.right.shape[-2]
        one = torch.zeros(examples, block.groups, block.left, block.right, dtype=torch.float64)
        for example in range(examples):
            for position in range(positions):
                if isinstance(use, Indexed):
                    row = use.index[example, position]
                    one[example, 0, row] += use.right[example, position].double()
                    continue
                for group in range(block.groups):
                    left, right = (
                        side[example, group, position].double() for side in (use.left, use.right)
                    )
                    one[example, group] += torch.outer(left, right)
        total = total + one
    return total


def flat(uses):
    """Return the whole gradient of every example, float64."""
    return torch.cat([gradients(block, uses[block.name]).flatten(1) for block in BLOCKS], dim=1)


def as_dense(uses):
    return {
        block.name: [Explicit(gradients(block, uses[block.name]).float())]
        for block in BLOCKS
        if block.name in uses
    }


def map_uses(function, uses):
    """Return uses with ``function`` applied to the left side of each product, or to the gradient."""

    def one(use):
        if isinstance(use, Explicit):
            return Explicit(function(use.gradient))
        if isinstance(use, Indexed):
            return Indexed(use.index, function(use.right))
        return Outer(function(use.left), use.right)

    return {name: [one(use) for use in block_uses] for name, block_uses in uses.items()}


def examples_of(uses, part):
    def one(use):
        if isinstance(use, Explicit):
            return Explicit(use.gradient[part])
        if isinstance(use, Indexed):
            return Indexed(use.index[part], use.right[part])
        return Outer(use.left[part], use.right[part])

    return {name: [one(use) for use in block_uses] for name, block_uses in uses.items()}


def ready(name, width=24, seed=3, blocks=BLOCKS, **options):
    """Return a projection that can be applied; a fitted one is fitted, in all its passes."""
    projection = member("projections", name)(blocks, width, seed, **options)
    return fitted(projection, random_uses(40, 99), random_uses(40, 98), 40)


def fitted(projection, probes, rows, examples, damping=0.0):
    """Return a projection after every pass over probes and loss gradients that its class asks for."""
    if not projection.fitted:
        return projection
    projection.load(projection.fit(projection.update(projection.empty(), probes, 1.0), examples))
    for shown in projection.passes[1:]:
        state = projection.refine_empty()
        if shown != "rows":
            state = projection.refine_update(state, probes, 1.0)
        if shown != "curvature":
            state = projection.refine_rows(state, rows)
        projection.load(projection.refine(state, examples, damping))
    return projection


@pytest.mark.parametrize("name", MEMBERS)
def test_features_depend_on_the_gradient_alone_and_not_on_how_it_was_captured(name):
    projection, uses = ready(name), random_uses(4, 0)
    assert_close(projection.apply(uses), projection.apply(as_dense(uses)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MEMBERS)
def test_features_are_linear_in_the_gradient(name):
    projection, one, other = ready(name), random_uses(4, 0), random_uses(4, 1)
    scaled = map_uses(lambda tensor: -2.5 * tensor, one)
    both = {block: [*scaled[block], *other[block]] for block in one}
    expected = -2.5 * projection.apply(one) + projection.apply(other)
    assert_close(projection.apply(both), expected, rtol=1e-4, atol=1e-4)
    assert expected.norm() > 1


@pytest.mark.parametrize("name", MEMBERS)
def test_one_example_at_a_time_gives_the_rows_of_the_batch(name):
    projection, uses = ready(name), random_uses(5, 0)
    alone = [projection.apply(examples_of(uses, slice(n, n + 1))) for n in range(5)]
    assert_close(torch.cat(alone), projection.apply(uses), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_same_seed_gives_the_same_rows(name):
    uses = random_uses(4, 0)
    assert torch.equal(ready(name).apply(uses), ready(name).apply(uses))


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_other_rows(name):
    uses = random_uses(4, 0)
    one, other = ready(name, seed=3).apply(uses), ready(name, seed=4).apply(uses)
    assert (one - other).norm() > 0.1 * one.norm()


@pytest.mark.parametrize("name", MEMBERS)
def test_parts_cover_the_row_and_name_blocks_once(name):
    projection = ready(name)
    rows, parts = projection.apply(random_uses(4, 0)), projection.parts
    assert rows.shape == (4, sum(part.width for part in parts)) and rows.dtype == torch.float32
    assert all(part.width > 0 for part in parts)
    labels = [part.name for part in parts]
    known = [block.name for block in BLOCKS]
    assert labels == ["all"] or labels == [label for label in known if label in labels]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("width", [6, 24, 61, TOTAL, 10 * TOTAL])
def test_the_width_is_what_was_asked_for_or_the_number_of_parameters(name, width):
    found = sum(part.width for part in ready(name, width=width).parts)
    wanted = TOTAL if name == "identity" else min(width, TOTAL)
    # The factored projection rounds each block down to a rectangle.
    lowest = wanted // 2 if name == "factored" and width < TOTAL else wanted
    assert lowest <= found <= wanted


@pytest.mark.parametrize("name", MEMBERS)
def test_a_block_that_took_no_part_counts_as_a_gradient_of_zero(name):
    projection, uses = ready(name), random_uses(4, 0)
    partial = {key: value for key, value in uses.items() if key not in ("linear", "embedding")}
    silent = map_uses(lambda t: 0.0 * t, {key: uses[key] for key in ("linear", "embedding")})
    assert_close(projection.apply(partial), projection.apply(partial | silent))


@pytest.mark.parametrize("name", MEMBERS)
def test_gradients_in_half_precision_are_summed_in_single(name):
    projection, half = ready(name), random_uses(4, 0, torch.bfloat16)
    single = {block: [use.float() for use in uses] for block, uses in half.items()}
    assert torch.equal(projection.apply(half), projection.apply(single))


@pytest.mark.parametrize("name", MEMBERS)
def test_facts_can_be_written_as_json(name):
    import json

    assert isinstance(json.dumps(ready(name).facts(), allow_nan=False), str)


def only_one_block_each():
    """Return a batch with two examples a block, which have a gradient in that block alone."""
    uses = random_uses(2 * len(BLOCKS), 5)

    def keep(number):
        here = torch.zeros(2 * len(BLOCKS))
        here[2 * number : 2 * number + 2] = 1.0
        return lambda t: t * here.view(-1, *[1] * (t.dim() - 1))

    return {
        block.name: map_uses(keep(number), {block.name: uses[block.name]})[block.name]
        for number, block in enumerate(BLOCKS)
    }


@pytest.mark.parametrize("name", RANDOM)
def test_inner_products_are_unbiased_over_seeds_in_every_kind_of_block(name):
    uses, seeds = only_one_block_each(), 2500
    exact = flat(uses)
    exact = exact @ exact.T
    products = []
    for seed in range(seeds):
        rows = ready(name, seed=seed).apply(uses).double()
        products.append(rows @ rows.T)
    mean, spread = torch.stack(products).mean(0), torch.stack(products).std(0)
    # Where the projection happens to be exact the spread is rounding alone.
    error = (mean - exact).abs() / (spread / seeds**0.5 + 1e-5 * exact.diagonal().max())
    assert error.max() < 4.5
    # A scale that is wrong by a quarter would be seen in every block.
    assert (5 * spread.diagonal() / seeds**0.5 < 0.25 * exact.diagonal()).all()


@pytest.mark.parametrize("name", RANDOM)
def test_the_blocks_do_not_mix_in_the_mean(name):
    blocks = [BLOCKS[0], Block("copy", ("copy.weight",), 1, 5, 4)]
    use = random_uses(1, 5)["linear"]
    products = []
    for seed in range(400):
        projection = ready(name, seed=seed, blocks=blocks, width=8)
        rows = projection.apply({"linear": use}), projection.apply({"copy": use})
        products.append(float((rows[0] * rows[1]).sum()))
    products = torch.tensor(products)
    assert products.mean().abs() < 4.5 * products.std() / 400**0.5 + 1e-6


@pytest.mark.parametrize("name", FITTED)
def test_merged_parts_fit_like_the_whole(name):
    projection, uses = member("projections", name)(BLOCKS, 24, 3), random_uses(40, 99)
    pieces = [examples_of(uses, part) for part in (slice(0, 7), slice(7, 8), slice(8, 40))]
    pieces[1].pop("embedding")  # a part may not have met a block at all
    uses = {name: value for name, value in uses.items() if name != "embedding"} | {
        "embedding": [
            Indexed(use.index, use.right * (torch.arange(40) != 7).float().view(-1, 1, 1))
            for use in uses["embedding"]
        ]
    }
    whole = projection.update(projection.empty(), uses, 0.5)
    parts = [projection.update(projection.empty(), piece, 0.5) for piece in pieces]
    merged = projection.merge(parts[1], projection.merge(parts[0], parts[2]))
    assert whole.keys() == merged.keys()
    for key, value in whole.items():
        assert_close(merged[key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", FITTED)
def test_a_projection_loaded_from_saved_arrays_gives_the_same_rows(name):
    one, uses = ready(name), random_uses(4, 0)
    file = io.BytesIO()
    np.savez(file, **{key: value.numpy() for key, value in one._arrays.items()})
    file.seek(0)
    other = member("projections", name)(BLOCKS, 24, 3)
    other.load({key: torch.from_numpy(value) for key, value in np.load(file).items()})
    assert torch.equal(one.apply(uses), other.apply(uses))
    assert one.facts() == other.facts()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MEMBERS)
def test_a_gpu_gives_the_rows_of_the_cpu(name):
    uses = random_uses(4, 0)
    there = {
        block: [type(use)(*(tensor.cuda() for tensor in vars(use).values())) for use in block_uses]
        for block, block_uses in uses.items()
    }
    expected = ready(name).apply(uses)
    assert_close(ready(name).to("cuda").apply(there).cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MEMBERS)
def test_layers_that_make_their_sides_on_demand_give_the_features_of_their_gradients(name, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 5, 2), nn.Flatten())
    net = net.append(nn.Linear(80, 3)).to(dtype).eval()
    batch = torch.randn(30, 4, 7, 7, dtype=dtype)
    capture = Capture(net, lambda model, batch: model(batch), batch)
    with capture.record(batch) as tape:
        uses = tape.gradients(tape.returned, torch.randn_like(tape.returned), last=True)
    dense = {b.name: [Explicit(dense_gradient(b, uses[b.name]))] for b in capture.blocks}
    for options in ({}, {"dense_limit": 1}) if name == "spectral" else ({},):
        projection = member("projections", name)(capture.blocks, 40, 0, **options)
        fitted(projection, uses, uses, 30)
        found, expected = projection.apply(uses), projection.apply(dense)
        assert found.dtype == torch.float32
        assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
