"""Decide whether the uses of a batch are believed, from what was proved of batches computed like it.

What is decided of a batch may depend on those before it, which spare proofs; what is returned
of it may not. So nothing but a proof of the batch itself, or of its very structure, sends it to
the slow path.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from streamfluence.capture._blocks import Filled
from streamfluence.capture._claim import Claim, Fault
from streamfluence.capture._layouts import UnevenCall
from streamfluence.capture._meeting import examples_meet
from streamfluence.capture._nested import example_count, select, signature
from streamfluence.capture._proof import Proof, turned
from streamfluence.capture._separation import Separation
from streamfluence.capture._spot import out_of_place
from streamfluence.capture._tape import Passed
from streamfluence.errors import CoverageError

_ENOUGH = 8  # proofs of one structure, after which a look at an example does
_FIRST_LOOKED = 16  # batches that are run in another order, too, example by example and in halves
_LOOKED_AT = 128  # of so many examples of later batches one is run alone

Key = tuple[Any, ...]  # of a batch: the shape of it, the structure of its graph, or what moves


class Judge:
    """What is known of one capture's batches.

    Args:
        proof: Compares with plain autograd.
        blocks: The captured blocks.
        run: ``run(separation, batch, stack)`` runs forward under a separation.
    """

    def __init__(
        self,
        proof: Proof,
        blocks: Sequence[Filled],
        run: Callable[[Separation, Any, ExitStack], Passed],
    ) -> None:
        self._proof, self._blocks, self._run = proof, blocks, run
        self._proved: dict[Key, list[Key]] = {}  # by structure: the moves proved with it
        self._usual: dict[Key, Key] = {}  # by shape of batch: the structure that was met first
        self._faulty: set[Key] = set()  # structures that move nothing and are wrong
        self._unseen: set[Key] = set()  # structures of batches that were believed without a look
        self._closely: dict[Key, bool] = {}  # by structure: whether no batch is believed unseen
        self._looked = 0

    def knows(self, structure: Key) -> bool:
        """Return whether a batch of this structure was met before."""
        return structure in self._proved

    def believes(self, passed: Passed, claim: Claim, prove: Sequence[int], seed: int) -> bool:
        """Return whether the uses of a batch are right; if not, only the last resort is.

        Args:
            claim: What has to hold of it.
            prove: Examples that are proved whatever is known.
            seed: Of the random numbers.

        Raises:
            CoverageError: If rows that were believed before are in doubt as well.
        """
        structure, moves = passed.structure, passed.moves
        if structure in self._faulty:
            return False
        proved = self._proved.setdefault(structure, [])
        # Of two structures of one shape the later follows from values. It may be a switch that all
        # of a batch shares, which shows only where some would not have switched alone.
        late = self._usual.setdefault(signature(passed.batch), structure) != structure
        doubtful = late or moves not in proved
        if doubtful and len(proved) < _ENOUGH:
            if self._fault_of_structure(passed, claim, seed) is None:
                proved.append(moves)
                return True
            if not moves:
                self._faulty.add(structure)
            return False
        if what := self._out_of_place(passed, claim, doubtful):
            if structure in self._unseen:
                raise CoverageError(f"{what}. {_DOUBT}")
            self._closely[structure] = True
            return False
        if prove and (fault := self._fault_of_some(claim, prove, seed)):
            raise CoverageError(f"{fault.what}. {_DOUBT}")
        return True

    def _out_of_place(self, passed: Passed, claim: Claim, always: bool) -> str | None:
        """Look closely at the first batches and where examples meet, else at a few examples."""
        self._looked += 1
        count = example_count(passed.batch)
        random = torch.Generator().manual_seed(self._looked)
        first = self._looked <= _FIRST_LOOKED
        often = float(torch.rand((), generator=random)) < count / _LOOKED_AT
        closely = first or self._suspect(passed, claim)
        if not (closely or often or always):
            self._unseen.add(passed.structure)
            return None
        if not closely:
            return self._seen_alone(claim, int(torch.randint(count, (), generator=random)))
        order = turned(count, self._looked)
        return (
            (first and self._seen_elsewhere(passed, order))
            or (first and self._seen_elsewhere(passed, [order[0], order[0]]))
            or _said(self._proof.fault_in_company(claim, order, self._looked))
        )

    def _suspect(self, passed: Passed, claim: Claim) -> bool:
        """Return whether a batch of this structure was wrong, or examples meet: a 0 may hide it."""
        structure = passed.structure
        if structure not in self._closely:
            self._closely[structure] = examples_meet(self._proof.run(claim), passed.batch)
        return self._closely[structure]

    def _seen_elsewhere(self, passed: Passed, order: list[int]) -> str | None:
        """Run some examples of a batch in another order and compare what every call sees of each."""
        with ExitStack() as stack:
            try:
                other = self._run(passed.separation, select(passed.batch, order), stack)
            except UnevenCall:  # these go another way: only what is returned can be compared
                return None
            return out_of_place(passed, other, order)

    def _seen_alone(self, claim: Claim, example: int) -> str | None:
        """Prove one example, run alone."""
        return _said(self._proof.fault(claim, [example], self._looked))

    def _fault_of_some(self, claim: Claim, prove: Sequence[int], seed: int) -> Fault | None:
        """Prove some rows of a batch, in two halves, so that each has other company."""
        half = len(prove) // 2 if len(prove) > 2 else len(prove)
        return self._proof.first_fault(claim, (prove[:half], prove[half:]), seed)

    def _fault_of_structure(self, passed: Passed, claim: Claim, seed: int) -> Fault | None:
        """Prove a batch that was computed like no other before, and again in another order."""
        order = turned(example_count(passed.batch), seed)
        return (
            self._proof.fault(claim, order, seed)
            or self._proof.fault_in_company(claim, order, seed)
            or self._fault_when_turned(passed, claim, seed)
        )

    def _fault_when_turned(self, passed: Passed, claim: Claim, seed: int) -> Fault | None:
        """Capture the batch once more in another order, and prove that."""
        order = turned(example_count(passed.batch), seed + 1)
        given = [None if c is None else c[order] for c in claim.roots]
        with ExitStack() as stack:
            try:
                again = self._run(passed.separation, select(passed.batch, order), stack)
                wanted = zip(again.roots, given, strict=True)
                pairs = [(root, c) for root, c in wanted if c is not None]
                roots, cotangents = [root for root, _ in pairs], [c for _, c in pairs]
                uses = again.uses(self._blocks, again.gradients(roots, cotangents, last=True))
            except UnevenCall as uneven:
                return Fault(str(uneven))
            claim = replace(again, measure=passed.measure).claim(given, uses)
        return self._proof.fault(claim, turned(len(order), seed), seed)


def _said(fault: Fault | None) -> str | None:
    return fault.what if fault else None


_DOUBT = (
    "Batches before this one were computed alike, so their rows are in doubt as well: use a new run "
    "folder after that change, or with `one_by_one = true` under [model], which runs each example "
    "alone and refuses those that have no gradient of their own"
)
