"""Cutting rows: every row exactly once, in order, from the start of a generation, whatever the numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfluence import layout
from streamfluence.layout import Span, cut, default_partition_examples

ROWS = st.integers(0, 500)
LENGTHS = st.integers(1, 60)


@st.composite
def spans(draw):
    start, stop = sorted((draw(ROWS), draw(ROWS)))
    return Span(start, stop)


@given(spans(), LENGTHS)
def test_the_pieces_hold_every_row_once_and_in_order(span, length):
    rows = [row for piece in cut(span, length) for row in range(piece.start, piece.stop)]
    assert rows == list(range(span.start, span.stop))


@given(spans(), LENGTHS)
def test_a_piece_ends_at_every_multiple_of_the_length_from_the_start_of_the_span(span, length):
    pieces = [range(piece.start, piece.stop) for piece in cut(span, length)]
    assert [{(row - span.start) // length for row in piece} for piece in pieces] == [
        {number} for number in range(-(-len(span) // length))
    ]


@given(spans(), LENGTHS, st.integers(1, 8))
def test_partitions_of_whole_batches_never_change_where_batches_are_cut(span, batch, batches):
    direct = list(cut(span, batch))
    through_partitions = [b for part in cut(span, batch * batches) for b in cut(part, batch)]
    assert through_partitions == direct


@given(ROWS, LENGTHS)
def test_every_partition_is_full_but_the_last(count, length):
    sizes = [len(part) for part in cut(Span(0, count), length)]
    assert sum(sizes) == count
    assert all(size == length for size in sizes[:-1])
    assert not sizes or 0 < sizes[-1] <= length


@given(st.integers(0, 2 * 10**9), st.integers(1, 5000))
def test_a_default_partition_is_whole_batches_within_its_bounds(count, batch_size):
    examples = default_partition_examples(count, batch_size)
    assert examples % batch_size == 0
    assert 1024 <= examples < 262_144 + batch_size


@pytest.mark.parametrize(
    ("count", "n_partitions"), [(0, 0), (1, 1), (1024, 1), (1025, 2), (200_000, 129), (10**9, 3815)]
)
def test_a_default_partitioning_has_about_128_parts_unless_parts_reach_their_bounds(
    count, n_partitions
):
    assert len(list(cut(Span(0, count), default_partition_examples(count, 1)))) == n_partitions


def test_names_of_a_run_are_these():
    stage = layout.collect_stage("train", 2)
    assert stage == "collect/train/2"
    assert layout.receipt_path(stage, 7) == "receipts/collect/train/2/00000007.json"
    assert (
        layout.attempt_path(stage, 7, "host-1-abc") == "parts/collect/train/2/00000007.host-1-abc"
    )


@given(st.lists(st.integers(0, 10**8 - 1), min_size=2))
def test_receipts_sort_by_name_as_their_partitions_sort_by_number(numbers):
    names = [layout.receipt_path("score/a", number) for number in numbers]
    assert sorted(names) == [layout.receipt_path("score/a", number) for number in sorted(numbers)]
