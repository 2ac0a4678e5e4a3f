"""The laws of every scan, against loops over steps and against training again."""

from functools import reduce
from itertools import pairwise

import pytest
import torch

from streamfluence.errors import InputError
from streamfluence.options import make
from streamfluence.registry import member, names
from streamfluence.scans.base import EMBEDDINGS

WIDTH = 7
OPTIONS = {"value_embedding": [{"curvature": "fisher"}, {"curvature": "gauss_newton"}]}
CASES = [(name, options) for name in names("scans") for options in OPTIONS.get(name, [{}])]


def each_scan(test):
    return pytest.mark.parametrize("name, options", CASES)(test)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def steps_of(scan, count=11):
    """Return rows, rate, vectors and decay of every step: batches and rates differ, one batch is empty."""
    sizes = [(3 * number) % 5 for number in range(count)]
    return [
        (
            random(size, WIDTH, seed=number),
            0.02 + 0.01 * number,
            random(2 * size, WIDTH, seed=100 + number) if scan.source == "probes" else None,
            0.003 * number,
        )
        for number, size in enumerate(sizes)
    ]


def walked(scan, steps):
    return reduce(lambda state, step: scan.step(state, *step), reversed(steps), scan.empty(WIDTH))


def assert_same(state, wanted):
    assert state.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(state[key], tensor, rtol=1e-12, atol=1e-12)


def by_hand(steps):
    """Return the embeddings, each carried by itself from its own step to the last, number by number."""
    found = []
    for number, (rows, rate, _, _) in enumerate(steps):
        for row in rows.tolist():
            effect = [rate * each for each in row]
            for later_rows, later_rate, vectors, decay in steps[number + 1 :]:
                lost = [decay * each for each in effect]
                for vector in (later_rows if vectors is None else vectors).tolist():
                    product = sum(a * b for a, b in zip(vector, effect, strict=True))
                    for place, each in enumerate(vector):
                        lost[place] += later_rate * each * product
                effect = [a - b for a, b in zip(effect, lost, strict=True)]
            found.append(effect)
    return torch.tensor(found, dtype=torch.float64)


@each_scan
def test_an_embedding_is_an_effect_carried_through_every_later_step(name, options):
    scan = make("scans", name, options)
    steps = steps_of(scan)
    found = scan.embeddings(walked(scan, steps))
    torch.testing.assert_close(found, by_hand(steps), rtol=1e-12, atol=1e-12)


def test_of_the_fisher_matrix_it_is_the_recursion_of_the_paper():
    """Algorithm 1 there: M = 0; from the last step on E = rate (G - G M^T), then M += E^T G."""
    scan = make("scans", "value_embedding", {"curvature": "fisher"})
    steps = [(rows, rate, None, 0.0) for rows, rate, _, _ in steps_of(scan)]
    summed, wanted = torch.zeros(WIDTH, WIDTH, dtype=torch.float64), []
    for rows, rate, _, _ in reversed(steps):
        wanted.insert(0, rate * (rows - rows @ summed.T))
        summed = summed + wanted[0].T @ rows
    found = scan.embeddings(walked(scan, steps))
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-12, atol=1e-12)


@each_scan
@pytest.mark.parametrize("cuts", [(4,), (0, 3, 3, 10), tuple(range(1, 11))])
def test_segments_made_apart_are_one_walk(name, options, cuts):
    scan = make("scans", name, options)
    steps = steps_of(scan)
    edges = [0, *cuts, len(steps)]
    parts = [walked(scan, steps[a:b]) for a, b in pairwise(edges)]
    assert_same(reduce(scan.combine, parts), walked(scan, steps))


@each_scan
def test_combine_is_associative_and_keeps_order(name, options):
    scan = make("scans", name, options)
    steps = steps_of(scan)
    a, b, c = (walked(scan, steps[cut]) for cut in (slice(4), slice(4, 7), slice(7, 11)))
    assert_same(scan.combine(scan.combine(a, b), c), scan.combine(a, scan.combine(b, c)))
    assert_same(scan.combine(a, scan.empty(WIDTH)), a)
    assert_same(scan.combine(scan.empty(WIDTH), a), a)
    one, other = (
        scan.carry(scan.combine(*pair), torch.eye(WIDTH).double()) for pair in ((a, b), (b, a))
    )
    assert not torch.allclose(one, other)


@each_scan
def test_a_direction_carried_back_has_the_products_it_has_at_the_end(name, options):
    scan = make("scans", name, options)
    steps, directions = steps_of(scan), random(3, WIDTH, seed=9)
    earlier, later = walked(scan, steps[:6]), walked(scan, steps[6:])
    whole = scan.combine(earlier, later)
    wanted = directions @ scan.embeddings(whole).T
    lean = {key: tensor for key, tensor in later.items() if key != EMBEDDINGS}
    before = scan.carry(lean, directions) @ scan.embeddings(earlier).T
    torch.testing.assert_close(before, wanted[:, : before.shape[1]], rtol=1e-12, atol=1e-12)
    twice = scan.carry(earlier, scan.carry(later, directions))
    torch.testing.assert_close(twice, scan.carry(whole, directions), rtol=1e-12, atol=1e-12)


@each_scan
def test_what_it_is_given_stays_as_it_was(name, options):
    scan = make("scans", name, options)
    state, step = walked(scan, steps_of(scan)[3:]), steps_of(scan)[2]
    kept = {key: tensor.clone() for key, tensor in state.items()}
    rows = step[0].clone()
    scan.step(state, *step)
    scan.combine(state, state)
    assert_same(state, kept)
    assert torch.equal(step[0], rows)


@each_scan
def test_rows_of_float32_make_a_state_of_the_type_it_began_with(name, options):
    scan = make("scans", name, options)
    for dtype in (torch.float32, torch.float64):
        state = scan.step(scan.empty(WIDTH, dtype), random(2, WIDTH).float(), 0.1)
        assert {tensor.dtype for tensor in state.values()} == {dtype}


def trained(features, targets, batches, rate, decay, without=None):
    """Return weights of a least-squares fit after SGD, one example left out of one step."""
    weights = torch.zeros(WIDTH, dtype=torch.float64)
    for number, batch in enumerate(batches):
        gradient = decay * weights * len(batch)
        for example in batch:
            if (number, example) != without:
                gradient = (
                    gradient + (features[example] @ weights - targets[example]) * features[example]
                )
        weights = weights - rate / len(batch) * gradient
    return weights


def test_where_training_is_linear_an_embedding_is_what_training_again_shows():
    """The loss is a square, so its Gauss-Newton matrix is its Hessian, and a step is linear."""
    features, targets, rate, decay = random(12, WIDTH), random(12, seed=3), 0.05, 0.2
    batches = [[0, 1, 2], [3, 4, 5, 6], [7, 8], [9, 10, 11], [0, 5, 8]]
    scan = make("scans", "value_embedding", {"curvature": "gauss_newton"})
    state, weights, steps = scan.empty(WIDTH), torch.zeros(WIDTH, dtype=torch.float64), []
    for batch in batches:
        own = features[batch]
        rows = (own @ weights - targets[batch])[:, None] * own
        steps.append((rows, rate / len(batch), own, rate * decay))
        weights = weights - rate * (rows.mean(0) + decay * weights)
    state = walked(scan, steps)
    places = [(number, example) for number, batch in enumerate(batches) for example in batch]
    for found, place in zip(scan.embeddings(state), places, strict=True):
        wanted = trained(features, targets, batches, rate, decay, place) - weights
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


def test_an_option_that_is_none_is_refused():
    with pytest.raises(InputError, match="'fisher'"):
        make("scans", "value_embedding", {"curvature": "hessian"})
    assert member("scans", "value_embedding")().source == "probes"


# --- a net, trained again -------------------------------------------------------------------


class Net:
    """A small net on three Gaussian classes as a function of one vector, and SGD on it by autograd."""

    RATE, SIZE, STEPS = 0.05, 8, 43

    def __init__(self):
        self.y = torch.arange(360) % 3
        self.x = random(360, 4, seed=5) + 1.5 * random(3, 4, seed=6)[self.y]
        order = torch.randperm(344, generator=torch.Generator().manual_seed(7))
        self.batches = order.split(self.SIZE)
        self.weights = [0.5 * random(43, seed=8)]
        for batch in self.batches:
            self.weights.append(self.step(self.weights[-1], batch))

    def logits(self, weights, rows):
        a, b, c, d = weights.split([20, 5, 15, 3])
        return torch.tanh(self.x[rows] @ a.view(4, 5) + b) @ c.view(5, 3) + d

    def losses(self, weights, rows):
        return torch.nn.functional.cross_entropy(
            self.logits(weights, rows), self.y[rows], reduction="none"
        )

    def gradient(self, weights, rows):
        leaf = weights.clone().requires_grad_()
        return torch.autograd.grad(self.losses(leaf, rows).sum(), leaf)[0]

    def step(self, weights, rows):
        return weights - self.RATE / self.SIZE * self.gradient(weights, rows)

    def rows(self, weights, rows):
        return torch.stack([self.gradient(weights, rows[i : i + 1]) for i in range(len(rows))])

    def vectors(self, weights, rows):
        """Return vectors whose outer products sum to ``J^T (diag p - p p^T) J``."""
        found = []
        for i in range(len(rows)):
            jacobian = torch.autograd.functional.jacobian(
                lambda w, i=i: self.logits(w, rows[i : i + 1])[0], weights
            )
            p = self.logits(weights, rows[i : i + 1])[0].softmax(0)
            values, basis = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
            found.append((basis * values.clamp(min=0).sqrt()).T @ jacobian)
        return torch.cat(found)

    def without(self, number, place):
        """Return the weights at the end without one example of one step."""
        batch = self.batches[number]
        weights = self.step(self.weights[number], batch[torch.arange(len(batch)) != place])
        return reduce(self.step, self.batches[number + 1 :], weights)


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.fixture(scope="module")
def truth(net):
    """Places of examples in steps, and the change of each query's loss without them."""
    places = [(number, number % net.SIZE) for number in range(net.STEPS)]
    queries = torch.arange(344, 360)
    before = net.losses(net.weights[-1], queries)
    changes = [net.losses(net.without(*place), queries) - before for place in places]
    return places, queries, torch.stack(changes)


@pytest.mark.parametrize("curvature, least", [("gauss_newton", 0.93), ("fisher", 0.9)])
def test_scores_rank_as_training_again_does(net, truth, curvature, least):
    """A short form of tools/bench/temporal.py."""
    places, queries, changes = truth
    scan = make("scans", "value_embedding", {"curvature": curvature})
    steps = [
        (
            net.rows(weights, batch),
            net.RATE / net.SIZE,
            net.vectors(weights, batch) if curvature == "gauss_newton" else None,
        )
        for weights, batch in zip(net.weights, net.batches, strict=False)
    ]
    state = reduce(lambda s, step: scan.step(s, *step), reversed(steps), scan.empty(43))
    chosen = scan.embeddings(state)[[number * net.SIZE + place for number, place in places]]
    scores = chosen @ net.rows(net.weights[-1], queries).T
    ranks = [each.argsort(0).argsort(0).T.double() for each in (scores, changes)]
    found = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*ranks, strict=True)]
    assert torch.stack(found).mean() > least
