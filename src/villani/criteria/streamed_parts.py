"""What `criteria/parts.py` measures, where weights are streamed: tensor by tensor, as a pass back hands them out."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from villani.criteria.partition import Parts, sketch_into
from villani.curvature.streamed import probe_part
from villani.objective.objective import Objective
from villani.objective.pieces import Piece, Vector
from villani.objective.spilled import Spilled
from villani.objective.streamed import Tape, back_together
from villani.statistics import Array
from villani.work.team import Rows


def tapes_of(objective: Objective, group: int, vectors: Sequence[Vector] = ()) -> list[Tape]:
    """A group's batches, inside `objective.evaluating()`."""
    return [Tape(objective, batch, vectors) for batch in objective.batches(group)]


def streamed_gradients(objective: Objective, parts: Parts, groups: Sequence[int], paired: int, buckets: int) -> Rows:
    """What needs first derivatives alone: their sum is kept on disk, and each is computed again to be held against it.

    Args:
        objective: at θ.
        parts: what to tell apart.
        groups: which.
        paired: how many groups are sketched, where they are a sample.
        buckets: of a part's sketch.

    Raises:
        InputError: θ in float64 is more than may be kept on disk.
    """
    space, finite = objective.parameters, objective.finite
    rows: dict[str, list[Array | float]] = {name: [] for name in ("tokens", "losses", "dots", "squares", "products")}
    sketches: list[Array] = []
    with Spilled(space, "the sum of gradients") as total, objective.evaluating():
        for group in groups:
            tapes = tapes_of(objective, group)
            dots, squares = np.zeros((2, parts.count))
            sketch = torch.zeros(parts.count * buckets, dtype=torch.float64, device=objective.device)
            sketched = not finite and len(sketches) < paired
            for piece in back_together(tapes):
                g = piece.gradient
                if space.parameters[piece.index].decayed:
                    parts.add_product(dots, piece.index, g, piece.value)
                parts.add_product(squares, piece.index, g, g)
                total.add(piece.index, g)
                if sketched:
                    sketch_into(sketch, parts, piece.index, g, buckets)
                del piece, g  # before the next one is made
            rows["tokens"].append(float(sum(len(tape.labels) for tape in tapes)))
            rows["losses"].append(sum(tape.loss() for tape in tapes))
            rows["dots"].append(dots)
            rows["squares"].append(squares)
            if sketched:
                sketches.append(sketch.cpu().numpy().reshape(parts.count, buckets))
        for group in groups:
            products = np.zeros(parts.count)
            for piece in () if finite else back_together(tapes_of(objective, group)):
                index, g = piece.index, piece.gradient
                del piece  # its values make room for the sum
                parts.add_product(products, index, g, total.part(index))
                del g
            rows["products"].append(products)
        totals = np.zeros(parts.count)
        for index in range(len(space.parameters)):
            part = total.part(index)
            parts.add_product(totals, index, part, part)
            del part
    found = {name: np.array(row) for name, row in rows.items()} | {"totals": totals}
    if sketches:
        found["gram"] = np.einsum("gak,hak->gha", *[np.array(sketches)] * 2)
    return found


def streamed_traces(
    objective: Objective, parts: Parts, group: int, seed: int, probes: int, blocks: Sequence[Sequence[int]],
    roundings: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Samples of traces (m, A), and the rounding (A,) of their mean, in ulps; see `group_traces`.

    Args:
        objective: at θ.
        parts: what to tell apart.
        group: whose loss sum.
        seed: of the probes.
        probes: m.
        blocks: sets of parts that get probes of their own; one probe for all of θ where there are none.
        roundings: of each entry of a product, in ulps.
    """
    supports: list[Sequence[int]] = list(blocks) or [range(parts.count)]
    found, rounding = np.full((probes, parts.count), np.nan), np.zeros(parts.count)
    whole = partial(probe_part, objective.parameters, seed, group)
    vectors = [
        _confined(partial(whole, probe), parts, support if blocks else None)
        for probe in range(probes) for support in supports
    ]  # fmt: skip
    sums, squares, moduli = np.zeros((3, len(vectors), parts.count))

    def add(piece: Piece, numbers: Sequence[int]) -> None:
        for place, (vector, curved) in piece.products.items():
            number = numbers[place]
            parts.add_terms((sums[number], squares[number], moduli[number]), piece.index, vector, curved)

    everything = list(range(len(vectors)))
    passes = _apart(parts, supports, probes) if objective.streamed else [everything]
    with objective.evaluating():
        for batch in objective.batches(group):
            squares[:], moduli[:] = 0.0, 0.0
            for numbers in passes:
                for piece in Tape(objective, batch, [vectors[n] for n in numbers]).back():
                    add(piece, numbers)
                    del piece  # before the next one is made
            rounding += (roundings * np.sqrt(squares) + moduli).sum(axis=0) / probes
    for number in range(len(vectors)):
        probe, support = number // len(supports), list(supports[number % len(supports)])
        found[probe, support] = sums[number, support]
    return found, rounding


def _apart(parts: Parts, supports: Sequence[Sequence[int]], probes: int) -> list[list[int]]:
    """Which probes go in one pass: such as have no tensor in common, since of each it is in memory with a product."""
    passes: list[tuple[list[int], set[int]]] = []
    for number in range(probes * len(supports)):
        wanted = parts.mask(supports[number % len(supports)])
        moved = {index for index, labels in enumerate(parts.labels) if bool(wanted[labels].any())}
        for numbers, taken in passes:
            if taken.isdisjoint(moved):
                numbers.append(number)
                taken |= moved
                break
        else:
            passes.append(([number], moved))
    return [numbers for numbers, _ in passes]


def _confined(part: Callable[[int], torch.Tensor], parts: Parts, support: Sequence[int] | None) -> Vector:
    """A probe on the chosen parts alone."""
    if support is None:
        return part
    wanted = parts.mask(support)

    def confined(index: int) -> torch.Tensor | None:
        inside = wanted[parts.labels[index]]
        if not bool(inside.any()):
            return None
        whole = part(index)  # drawn anew each time
        return whole.mul_(inside.to(whole.device))

    return confined


def streamed_slopes(
    objective: Objective, groups: Sequence[int], indices: Sequence[int]
) -> tuple[dict[int, torch.Tensor], float, float]:
    """(∇ of the loss sum of some groups in some tensors, in float64, tokens, loss sum)."""
    space = objective.parameters
    sums = {i: torch.zeros(space.parameters[i].tensor.shape, dtype=torch.float64, device=space.device) for i in indices}
    tokens = loss = 0.0
    with objective.evaluating():
        for group in groups:
            for tape in tapes_of(objective, group):
                tokens += len(tape.labels)
                loss += tape.loss()
                for piece in tape.back():
                    if piece.index in sums:
                        sums[piece.index] += piece.gradient
                    del piece
    return sums, tokens, loss
