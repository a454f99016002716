"""‖∇L‖² part by part, from the gradients of groups that lie on disk until all of them are there.

The U-statistic of ‖∇_B L‖² and its jackknife need every group's gradient h_g beside their sum (THEORY.md §6). A
gradient is of θ's size. It is written to a file when it is made, and when all are there they are read side by side, a
few million entries at a time, so that no more than one of them is ever in memory. A killed run goes on from the files.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from villani.criteria.partition import Parts, fold_into, sketch_into, sketch_signs
from villani.objective.objective import Objective, check_differentiable
from villani.statistics import Array
from villani.work.ledger import writing
from villani.work.team import Rows
from villani.work.work import Work

BUCKETS = 1021  # of a part's sketch: tells up to about so many directions of noise apart
PAIRED = 32  # groups whose pairs are compared, at most
MOST = 8 << 30  # bytes of gradients that are written at most; beyond it each is computed twice
AT_ONCE = 1 << 24  # entries of gradients, of all groups together, that are read at a time
_HEAD = 16  # bytes of a file before the gradient: tokens and loss, in float64


def gradient_units(
    objective: Objective, parts: Parts, groups: Sequence[int], work: Work
) -> Mapping[str, Callable[[], Rows]]:
    """Units of work that end in `gradients`, whose rows are those of `PartStatistics`; one for each group before it.

    Where the groups are all the data, their sum is all that is wanted, and where their gradients are more than `MOST`
    bytes each is computed twice: then there is one unit alone.
    """
    if objective.finite or kept_bytes(objective, len(groups)) == 0:
        return {"gradients": partial(_computed_twice, objective, parts, groups)}
    kept = KeptGradients(objective, work.scratch("gradients"))
    units: dict[str, Callable[[], Rows]] = {f"gradient/{group}": partial(kept.make, group) for group in groups}
    return units | {"gradients": partial(_side_by_side, kept, objective, parts, groups)}


def kept_bytes(objective: Objective, count: int) -> int:
    """What the gradients of so many groups take on disk; 0 where they are not kept there."""
    space = objective.parameters
    whole = count * (space.size * space.dtype.itemsize + _HEAD)
    return 0 if whole > MOST or objective.finite else whole


class KeptGradients:
    """One file for each group, whole or not there: tokens, loss sum, and the gradient of the loss sum.

    Args:
        objective: at θ.
        folder: where; a temporary one, gone with this object, if None.
    """

    def __init__(self, objective: Objective, folder: Path | None) -> None:
        self.objective = objective
        self._space = objective.parameters
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="villani-")
        self._folder = folder or Path(self._temporary.name if self._temporary else "")

    def make(self, group: int) -> Rows:
        """Write a group's gradient, if it is not there."""
        path = self._path(group)
        if not path.exists():
            gradient, tokens, loss = batch_gradients(self.objective, group)
            unfinished = path.with_suffix(f".{os.getpid()}")
            with writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                with unfinished.open("wb") as file:
                    file.write(np.array([tokens, loss]).tobytes())
                    for tensor in gradient:
                        file.write(tensor.cpu().contiguous().numpy().tobytes())
                unfinished.replace(path)
        return {"group": np.array([float(group)])}

    def sizes(self, group: int) -> tuple[float, float]:
        """Tokens and loss sum."""
        with self._path(group).open("rb") as file:
            tokens, loss = np.frombuffer(file.read(_HEAD))
        return float(tokens), float(loss)

    def rows(self, groups: Sequence[int], index: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some entries of one tensor at a time: which, and those of every group in float64, (G, n)."""
        parameter, width = self._space.parameters[index], self._space.dtype.itemsize
        count, step = parameter.tensor.numel(), max(1, AT_ONCE // len(groups))
        kind = np.dtype(str(self._space.dtype).removeprefix("torch."))
        for start in range(0, count, step):
            size = min(step, count - start)
            found = torch.empty(len(groups), size, dtype=torch.float64)
            for row, group in zip(found, groups, strict=True):
                place = _HEAD + width * (parameter.offset + start)
                row.copy_(torch.from_numpy(np.fromfile(self._path(group), kind, size, offset=place)))
            yield slice(start, start + size), found

    def drop(self) -> None:
        """Delete the files, and the folders that are empty then."""
        if self._temporary:
            self._temporary.cleanup()
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        for above in self._folder.parents:
            if "scratch" not in above.parts or any(above.iterdir()):
                break
            above.rmdir()

    def _path(self, group: int) -> Path:
        return self._folder / f"{group}.gradient"


def batch_gradients(
    objective: Objective, group: int, indices: Sequence[int] | None = None
) -> tuple[list[torch.Tensor], float, float]:
    """(∇ of a group's loss sum in some tensors, in θ's precision, tokens, loss sum); all tensors by default.

    What is not asked for is not computed: a backward pass ends at the first of the tensors.
    """
    space = objective.parameters
    chosen = [space.tensors[i] for i in (range(len(space.tensors)) if indices is None else indices)]
    sums: list[torch.Tensor | None] = [None] * len(chosen)
    tokens = loss = 0.0
    with objective.evaluating():
        for batch in objective.batches(group):
            forward = objective.forward(batch)
            tokens += forward.tokens
            loss += float(forward.loss.detach().double())
            check_differentiable(forward.loss)
            pieces = torch.autograd.grad(forward.loss, chosen, allow_unused=True)
            del forward
            sums = [p if s is None else s if p is None else s.add_(p) for s, p in zip(sums, pieces, strict=True)]
    return [torch.zeros_like(t) if s is None else s for t, s in zip(chosen, sums, strict=True)], tokens, loss


def _side_by_side(kept: KeptGradients, objective: Objective, parts: Parts, groups: Sequence[int]) -> Rows:
    """What the gradients of groups say, from their files; one that is not there is computed again."""
    space = objective.parameters
    for group in groups:
        kept.make(group)
    sizes = np.array([kept.sizes(group) for group in groups])
    dots, squares, products = np.zeros((3, len(groups), parts.count))
    totals = np.zeros(parts.count)
    sketches = torch.zeros(min(len(groups), PAIRED), parts.count * BUCKETS, dtype=torch.float64)
    for index, parameter in enumerate(space.parameters):
        values, labels = parameter.tensor.detach().reshape(-1), parts.flat_labels(index, parameter.tensor.shape)
        signs = sketch_signs(index, len(values))
        for place, h in kept.rows(groups, index):
            own, total = labels if len(labels) == 1 else labels[place], h.sum(dim=0, keepdim=True)
            parts.add_rows(squares, own, h.square())
            parts.add_rows(products, own, h * total)
            parts.add_rows(totals[None], own, total.square())
            if parameter.decayed:
                parts.add_rows(dots, own, h * values[place].double().cpu())
            fold_into(sketches, own, h[: len(sketches)].mul_(signs[place]), place.start, BUCKETS)
    kept.drop()
    found = {"tokens": sizes[:, 0], "losses": sizes[:, 1], "dots": dots, "squares": squares, "products": products}
    sketched = sketches.numpy().reshape(len(sketches), parts.count, BUCKETS)
    return found | {"totals": totals, "gram": np.einsum("gak,hak->gha", sketched, sketched)}


def _computed_twice(objective: Objective, parts: Parts, groups: Sequence[int]) -> Rows:
    """The same where no gradient is kept: their sum first, then each again beside it."""
    space, finite = objective.parameters, objective.finite
    total = [torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in space.tensors]
    rows: dict[str, list[Array | float]] = {name: [] for name in ("tokens", "losses", "dots", "squares", "products")}
    sketches: list[Array] = []
    for group in groups:
        gradient, tokens, loss = batch_gradients(objective, group)
        dots, squares = np.zeros((2, parts.count))
        sketch = torch.zeros(parts.count * BUCKETS, dtype=torch.float64, device=objective.device)
        sketched = not finite and len(sketches) < PAIRED
        for index, (g, t, p) in enumerate(zip(gradient, total, space.parameters, strict=True)):
            t.add_(g)
            if p.decayed:
                parts.add_product(dots, index, g, p.tensor.detach())
            parts.add_product(squares, index, g, g)
            if sketched:
                sketch_into(sketch, parts, index, g, BUCKETS)
        one: dict[str, Array | float] = {"tokens": tokens, "losses": loss, "dots": dots, "squares": squares}
        for name, value in one.items():
            rows[name].append(value)
        if sketched:
            sketches.append(sketch.cpu().numpy().reshape(parts.count, BUCKETS))
    for group in groups:
        products = np.zeros(parts.count)
        for index, g in enumerate(() if finite else batch_gradients(objective, group)[0]):
            parts.add_product(products, index, g, total[index])
        rows["products"].append(products)
    found = {name: np.array(row) for name, row in rows.items()}
    found["totals"] = parts.sums([t.square() for t in total])
    if sketches:
        found["gram"] = np.einsum("gak,hak->gha", *[np.array(sketches)] * 2)
    return found
