"""The numerical pieces against references in plain Python integers and numpy float64."""

import numpy as np
import pytest
import torch

from streamfluence.linalg import (
    add_states,
    hash_counters,
    random_orthogonal,
    sign_block,
    symmetric_eigen,
)

WORD = 1 << 64

SIGNS_OF_SEED_0 = [-1, -1, 1, -1, -1, 1, -1, -1, 1, 1, -1, 1, 1, 1, 1, -1]
SIGNS_OF_SEED_12345 = [[1, 1, -1, -1, 1, -1, -1, 1], [1, 1, 1, -1, -1, -1, -1, 1]]


def signs(seed, *counters):
    """One bit of every hash as -1 or +1: what random projections and probes are made of."""
    return 1.0 - 2.0 * (hash_counters(seed, *counters) & 1).to(torch.float32)


def splitmix(seed: int, *counters: int) -> int:
    """Return the hash of scalars, literally, in unsigned Python integers."""
    state = (2 * seed + 1) % WORD
    for counter in counters:
        state = (state + 0x9E3779B97F4A7C15 * (counter + 1)) % WORD
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
        state ^= state >> 31
    return state


def grid(*lengths: int) -> list[torch.Tensor]:
    """Return counters that broadcast to one element per cell of a grid."""
    return list(torch.meshgrid(*(torch.arange(n) for n in lengths), indexing="ij"))


def symmetric(size: int, seed: int = 0) -> np.ndarray:
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return matrix + matrix.T


@pytest.mark.parametrize("seed", [0, 1, 17, -1, 2**62, 2**63 - 1, 2**63, 2**64 + 5, -(2**70)])
@pytest.mark.parametrize("counters", [(0,), (1,), (3, 5), (0, 0, 0), (2**63 - 1,), (-1, 2**40)])
def test_hash_equals_splitmix64_in_unsigned_integers(seed, counters):
    hashed = hash_counters(seed, *(torch.tensor(counter) for counter in counters))
    assert hashed.dtype == torch.int64
    assert int(hashed) % WORD == splitmix(seed, *counters)


def test_hash_takes_integers_and_tensors_alike():
    column, row = torch.arange(4)[:, None], torch.arange(3)
    hashed = hash_counters(9, column, 7, row)
    assert hashed.shape == (4, 3)
    assert int(hashed[2, 1]) % WORD == splitmix(9, 2, 7, 1)


def test_signs_are_these_on_every_device_and_release():
    assert signs(0, torch.arange(16)).int().tolist() == SIGNS_OF_SEED_0
    assert signs(12345, *grid(2, 8)).int().tolist() == SIGNS_OF_SEED_12345


@pytest.mark.gpu
def test_signs_on_cuda_equal_signs_on_the_cpu():
    counters = grid(64, 64)
    there = signs(3, *(counter.cuda() for counter in counters))
    assert torch.equal(there.cpu(), signs(3, *counters))


@pytest.mark.parametrize("seed", [0, 1, 2, 1000, 2**40])
def test_signs_are_balanced(seed):
    count = 200_000
    # Five standard deviations of a fair coin.
    assert abs(float(signs(seed, torch.arange(count)).sum())) < 5 * count**0.5


@pytest.mark.parametrize("shape", [(4, 50_000), (50_000, 4)])
def test_signs_of_different_counters_are_uncorrelated_along_every_axis(shape):
    drawn = signs(11, *grid(*shape))
    by_line = drawn if shape[0] == 4 else drawn.T
    correlation = (by_line @ by_line.T / 50_000).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 5 / 50_000**0.5


def test_signs_of_different_seeds_are_uncorrelated():
    drawn = torch.stack([signs(seed, torch.arange(50_000)) for seed in range(6)])
    correlation = (drawn @ drawn.T / 50_000).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 5 / 50_000**0.5


def test_signs_are_fourwise_independent_enough_for_a_product_of_lines():
    # A plain xor of one-counter hashes fails this: s(a,c) s(a,d) s(b,c) s(b,d) would always be 1.
    drawn = signs(2, *grid(300, 300))
    products = drawn[:-1, :-1] * drawn[:-1, 1:] * drawn[1:, :-1] * drawn[1:, 1:]
    assert abs(float(products.mean())) < 5 / products.numel() ** 0.5


def test_the_order_of_counters_matters():
    first, second = grid(64, 64)
    assert not torch.equal(signs(1, first, second), signs(1, second, first))


@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_a_block_of_signs_is_the_bits_of_hashed_words(width):
    rows = [0, 5, 2**40]
    expected = [
        [1 - 2 * (splitmix(7, row, 3, bit // 64) >> (bit % 64) & 1) for bit in range(width)]
        for row in rows
    ]
    block = sign_block(7, torch.tensor(rows), width, 3)
    assert block.dtype == torch.float32
    assert block.int().tolist() == expected


def test_a_row_of_signs_depends_on_nothing_but_its_number_and_a_longer_one_begins_alike():
    whole = sign_block(1, torch.arange(50), 200, 0)
    assert torch.equal(sign_block(1, torch.tensor([31, 4]), 200, 0), whole[[31, 4]])
    assert torch.equal(sign_block(1, torch.arange(50), 77, 0), whole[:, :77])
    assert not torch.equal(sign_block(1, torch.arange(50), 200, 1), whole)


def test_signs_of_a_block_are_balanced_and_uncorrelated_within_and_between_rows():
    block = sign_block(3, torch.arange(4000), 128, 0)
    assert abs(float(block.sum())) < 5 * block.numel() ** 0.5
    between_columns = (block.T @ block / 4000).fill_diagonal_(0.0)
    assert float(between_columns.abs().max()) < 6 / 4000**0.5
    between_rows = (block[:300] @ block[:300].T / 128).fill_diagonal_(0.0)
    assert float(between_rows.abs().max()) < 6 / 128**0.5


@pytest.mark.gpu
def test_a_block_of_signs_on_cuda_equals_that_on_the_cpu():
    rows = torch.arange(100)
    assert torch.equal(sign_block(9, rows.cuda(), 100, 1).cpu(), sign_block(9, rows, 100, 1))


def test_no_rows_have_a_block_of_no_signs():
    assert sign_block(0, torch.arange(0), 5, 0).shape == (0, 5)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_eigenvalues_and_vectors_rebuild_a_positive_matrix(size):
    root = np.random.default_rng(size).normal(size=(size, size))
    matrix = root @ root.T
    values, vectors = symmetric_eigen(torch.from_numpy(matrix))
    np.testing.assert_allclose(values.numpy(), np.linalg.eigvalsh(matrix)[::-1], atol=1e-9)
    rebuilt = vectors.numpy() @ np.diag(values.numpy()) @ vectors.numpy().T
    np.testing.assert_allclose(rebuilt, matrix, atol=1e-9)
    np.testing.assert_allclose(vectors.numpy().T @ vectors.numpy(), np.eye(size), atol=1e-12)


def test_negative_eigenvalues_become_zero_and_the_others_stay():
    matrix = symmetric(9)
    expected = np.clip(np.linalg.eigvalsh(matrix)[::-1], 0, None)
    assert (expected == 0).any()
    np.testing.assert_allclose(symmetric_eigen(torch.from_numpy(matrix))[0], expected, atol=1e-9)


def test_only_the_symmetric_part_counts_and_float32_is_raised_to_float64():
    matrix = torch.from_numpy(symmetric(6))
    skew = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values, vectors = symmetric_eigen((matrix + skew - skew.T).float())
    assert values.dtype == vectors.dtype == torch.float64
    torch.testing.assert_close(values, symmetric_eigen(matrix)[0], atol=1e-5, rtol=1e-5)


def test_the_largest_entry_of_every_eigenvector_is_positive():
    vectors = symmetric_eigen(torch.from_numpy(symmetric(30)))[1]
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()


def test_an_empty_matrix_has_no_eigenvalues():
    values, vectors = symmetric_eigen(torch.zeros(0, 0))
    assert values.shape == (0,) and vectors.shape == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 33])
def test_a_random_orthogonal_matrix_is_orthogonal_and_follows_its_seed(size):
    matrix = random_orthogonal(size, seed=4)
    assert matrix.dtype == torch.float64
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, atol=1e-12, rtol=0)
    assert torch.equal(matrix, random_orthogonal(size, seed=4))
    assert size == 1 or not torch.equal(matrix, random_orthogonal(size, seed=5))


def test_random_orthogonal_matrices_are_haar_distributed():
    # Without the sign correction of QR the diagonal is one-sided and its mean far from 0.
    diagonal = torch.stack([random_orthogonal(3, seed).diagonal() for seed in range(2000)])
    assert float(diagonal.mean(0).abs().max()) < 5 / (3 * 2000) ** 0.5
    torch.testing.assert_close(
        (diagonal**2).mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.04, rtol=0
    )


def test_drawing_a_matrix_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_orthogonal(5, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_states_add_key_by_key():
    a = {"x": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    b = {"x": torch.tensor([10.0, 20.0]), "n": torch.tensor(4)}
    total = add_states(a, b)
    assert total["x"].tolist() == [11.0, 22.0] and int(total["n"]) == 7
