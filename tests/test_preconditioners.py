"""Laws of every preconditioner, whichever curvature returns it, against dense matrices in float64."""

import pytest
import torch

from streamfluence.curvature._moments import Moments
from streamfluence.registry import member, names

WIDTHS = [5, 1, 4]
DAMPING, OTHER = 0.2, 0.9


def random_rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, sum(WIDTHS), generator=generator, dtype=torch.float64)


def factored(name, damping=DAMPING):
    """The curvature over some rows with this damping."""
    curvature, rows = member("curvature", name)(), random_rows(50, 0)
    return curvature.factor(curvature.update(curvature.empty(WIDTHS), rows), 50, damping)


def variants(name, damping=DAMPING):
    """What a curvature returns, and that half-whitened for other rows where it is."""
    yield factored(name, damping)
    moments = member("curvature", name)().row_moments
    if isinstance(moments, Moments):
        rows = random_rows(30, 5) * torch.linspace(0.1, 3, sum(WIDTHS), dtype=torch.float64)
        sums = moments.blocks(moments.update(moments.empty(WIDTHS), rows))
        yield factored(name, damping).half_whitened([block / 30 for block in sums])[0]


CURVATURES = [(name, kind) for name in names("curvature") for kind in range(len([*variants(name)]))]
DAMPED = [case for case in CURVATURES if case[0] != "identity"]


def made(case, damping=DAMPING):
    return [*variants(case[0], damping)][case[1]]


def inverse(name, damping=DAMPING):
    """(H + damping)^-1, shape ``(feature, feature)``, of the rows that ``factored`` has seen."""
    eye = torch.eye(sum(WIDTHS), dtype=torch.float64)
    if name == "identity":
        return eye
    rows = random_rows(50, 0)
    outer = torch.einsum("ni,nj->ij", rows, rows) / 50
    blocks = [torch.ones(width, width) for width in WIDTHS]
    mask = eye if name == "diagonal" else torch.block_diag(*blocks).double()
    return torch.linalg.inv(outer * mask + damping * eye)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_every_member_is_what_some_curvature_returns_and_is_found_by_its_name():
    found = {type(factored(name)) for name in names("curvature")}
    assert {member("preconditioners", kind.name) for kind in found} == found
    assert {kind.name for kind in found} == set(names("preconditioners"))


@pytest.mark.parametrize("case", CURVATURES)
def test_products_of_queries_and_rows_are_those_of_the_damped_inverse(case):
    queries, rows, one = random_rows(4, 2), random_rows(6, 3), made(case)
    products = one.for_queries(one.whiten(queries)) @ one.for_rows(one.whiten(rows)).T
    close(products, queries @ inverse(case[0]) @ rows.T)


@pytest.mark.parametrize("case", CURVATURES)
def test_whitening_twice_solves(case):
    eye, one = torch.eye(sum(WIDTHS), dtype=torch.float64), made(case)
    whitening = one.whiten(eye)
    close(whitening @ whitening.T, one.solve(eye))
    close(one.solve(random_rows(3, 4)), random_rows(3, 4) @ inverse(case[0]))


@pytest.mark.parametrize("case", DAMPED)
def test_redamped_queries_ask_as_those_of_a_fresh_one_of_the_other_damping(case):
    queries, rows, one, other = random_rows(4, 2), random_rows(6, 3), made(case), made(case, OTHER)
    asked = one.redamp(one.for_queries(one.whiten(queries)), OTHER)
    fresh = other.for_queries(other.whiten(queries)) @ other.for_rows(other.whiten(rows)).T
    close(asked @ one.for_rows(one.whiten(rows)).T, fresh)
    assert one.effective_dimension(OTHER) == pytest.approx(other.effective_dimension())


@pytest.mark.parametrize("case", CURVATURES)
def test_one_made_from_its_state_is_the_same(case):
    one = made(case)
    again = member("preconditioners", one.name).from_state(dict(sorted(one.state().items())))
    queries = one.whiten(random_rows(4, 2))
    assert torch.equal(again.whiten(random_rows(4, 2)), queries)
    assert torch.equal(again.for_queries(queries), one.for_queries(queries))
    assert torch.equal(again.for_rows(queries), one.for_rows(queries))
    assert again.facts("abc") == one.facts("abc") and again.width == one.width


@pytest.mark.parametrize("case", CURVATURES)
def test_rows_in_float32_are_whitened_in_float32(case):
    rows, one = random_rows(6, 3), made(case)
    ready = one.to("cpu")
    found = ready.for_rows(ready.whiten(rows.float()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), one.for_rows(one.whiten(rows)), rtol=1e-4, atol=1e-5)


def test_half_whitened_coordinates_of_a_diagonal_have_the_energies_it_says():
    rows = random_rows(30, 5) * torch.linspace(0.1, 3, sum(WIDTHS), dtype=torch.float64)
    one, energies = factored("diagonal").half_whitened(rows.square().mean(0).split(WIDTHS))
    close(one.for_rows(one.whiten(rows)).square().mean(0), energies.square())


@pytest.mark.parametrize("case", DAMPED)
def test_facts_say_of_every_block_what_it_is(case):
    facts = made(case).facts(["a", "b", "c"])
    squares = random_rows(50, 0).square().mean(0).split(WIDTHS)
    assert [fact["name"] for fact in facts] == ["a", "b", "c"]
    assert [fact["width"] for fact in facts] == WIDTHS
    assert [fact["damping"] for fact in facts] == [DAMPING] * 3
    means = [fact["mean_eigenvalue"] for fact in facts]
    assert means == pytest.approx([float(block.mean()) for block in squares])
