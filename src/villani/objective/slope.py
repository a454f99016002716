"""Whether what autograd gives is the gradient of the loss: ⟨∇L, v⟩ held against a difference of L along v.

Where part of a forward runs under `no_grad`, detaches what depends on θ, or has a backward of its own that is that of
another function, autograd gives some vector, and every figure made of it is wrong without a sign of it. How well the
two agree is a matter of the code, not of θ, and is looked at where no ReLU and no choice of experts stands on its edge.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from villani.errors import InputError, first_line, out_of_memory
from villani.objective.parameters import double_dot

Objective = Any  # a `villani.Objective`
TOLERANCE = 2e-3  # of ‖s⊙∇L‖, the usual size of ⟨∇L, v⟩; rounding in float32 is 10⁻³ of it
STEPS = (6e-4, 2.5e-3, 1.5e-4)  # of v, whose entries are as large as θ's; from the second on only where needed
DIRECTIONS = 2  # that are looked at; those to confirm what one of them shows are more
_CONFIRMED = 4  # directions at most
_STEADY = 0.25  # how much slope and disagreement may depend on the step: those of kinks and of rounding go with 1/step
_CLEAR = 3.0  # times what rounding explains
_NOISE = 2 * torch.finfo(torch.float32).eps  # of a loss, relative: models round to float32 inside whatever θ is
_STIR = 0.1  # of the size of a tensor's entries: what takes θ away from edges
_SMALL = 0.02  # the same of a tensor of zeros
_PORTIONS = 4  # that the gradient is taken in
_PERIOD = 65_537  # of random numbers, a prime, so that rows of a matrix do not repeat each other


class NoGradient(InputError):
    """What autograd gives is no gradient of the loss, or nothing."""


def stir(tensors: Sequence[torch.Tensor]) -> None:
    """Move θ a tenth of its size, so that no value stands where a kink or a tie is."""
    for index, tensor in enumerate(tensors):
        _moved(tensor, 0, index, _STIR * _size(tensor))


def check_gradient(objective: Objective, piece: Any, name: str) -> None:
    """Refuse a model whose gradient is not that of its loss on a piece; θ comes back up to rounding.

    A disagreement counts where the difference quotient is the same at steps that differ by four and more, from both
    sides: that of jumps, of kinks nearby, of rounding, and of what no step resolves is not. Takes a few gradients, none
    of them whole, and four forward passes where the two agree.

    Raises:
        NoGradient: they disagree, or the backward pass fails.
    """
    with torch.no_grad():
        sizes = [_size(t) for t in objective.parameters.tensors]
    mean, gradient = _gradient(objective, piece, name, sizes)
    if gradient is None:
        return
    with torch.no_grad():
        usual, claims = gradient
        wrong: list[tuple[float, float]] = []
        for direction, claimed in enumerate(claims, 1):
            if direction > DIRECTIONS and not wrong:
                return
            pair = _disagreement(objective, piece, claimed, sizes, (direction, mean, usual))
            if pair is not None:
                wrong.append(pair)
            if len(wrong) > 1:
                break
    if len(wrong) > 1:
        slope, claimed = wrong[0]
        raise NoGradient(
            f"{name}'s gradient is not that of its loss, which changes by {slope:.3g} along a direction where the "
            f"gradient says {claimed:.3g} (on one row, θ stirred): some of it runs under no_grad, is detached, or has "
            "a backward of its own that is wrong; take that out"
        )


def _gradient(
    objective: Objective, piece: Any, name: str, sizes: Sequence[float]
) -> tuple[float, tuple[float, list[float]] | None]:
    """Mean loss, and (‖s⊙∇L‖, ⟨∇L, v⟩ for every v); None where there is nothing to hold against a difference.

    A part of the gradient at a time, each by a backward pass of its own, so that no copy of θ is made; all of it by one
    where a model's backward pass is made but once.
    """
    mean, loss = _mean_loss(objective, piece)
    if loss is None:
        return mean, None
    portions = _portions([t.numel() for t in objective.parameters.tensors])
    try:
        return mean, _claims(objective, loss, sizes, portions)
    except Exception as error:  # a backward pass fails in as many ways as there are models
        if isinstance(error, torch.OutOfMemoryError) or out_of_memory(error):
            raise
    _, loss = _mean_loss(objective, piece)
    try:
        return mean, None if loss is None else _claims(objective, loss, sizes, [range(len(sizes))])
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or out_of_memory(error):
            raise
        raise NoGradient(f"{name} fails in its backward pass: {first_line(error)}") from error


def _mean_loss(objective: Objective, piece: Any) -> tuple[float, torch.Tensor | None]:
    """A number, and with its graph; None where it has none, or is not finite: what measures the loss says so."""
    with torch.enable_grad():
        forward = objective.forward(piece)
        mean = float(forward.loss.detach()) / forward.tokens
        whole = forward.loss.requires_grad and math.isfinite(mean)
        return mean, forward.loss / forward.tokens if whole else None


def _claims(
    objective: Objective, loss: torch.Tensor, sizes: Sequence[float], portions: Sequence[range]
) -> tuple[float, list[float]] | None:
    """(‖s⊙∇L‖, ⟨∇L, v⟩ for every v), from so many backward passes; None of a gradient that is not finite."""
    tensors = objective.parameters.tensors
    square, claims = 0.0, [0.0] * _CONFIRMED
    for portion in portions:
        found = torch.autograd.grad(
            loss, tensors[portion.start : portion.stop], allow_unused=True, materialize_grads=True,
            retain_graph=portion != portions[-1],
        )  # fmt: skip
        for index, g in zip(portion, found, strict=True):
            norm = double_dot(g, g) ** 0.5
            if not math.isfinite(norm):
                return None
            square += (norm * sizes[index]) ** 2
            for place in range(_CONFIRMED):
                claims[place] += sizes[index] * _along(g, place + 1, index)
        del found, g
    return math.sqrt(square), claims


def _portions(counts: Sequence[int]) -> list[range]:
    """Tensors in runs of about a quarter of all entries."""
    least, portions, first, entries = sum(counts) / _PORTIONS, [], 0, 0
    for index, count in enumerate(counts):
        entries += count
        if entries >= least or index + 1 == len(counts):
            portions.append(range(first, index + 1))
            first, entries = index + 1, 0
    return portions


def _disagreement(
    objective: Objective,
    piece: Any,
    claimed: float,
    sizes: Sequence[float],
    scale: tuple[int, float, float],
) -> tuple[float, float] | None:
    """(slope, ⟨∇L, v⟩) along one direction; None where they agree at some step, or where no step can tell."""
    direction, mean, usual = scale
    tensors = objective.parameters.tensors

    def move(step: float) -> None:
        for index, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
            _moved(tensor, direction, index, step * size)

    slopes, noise = [], _NOISE * (1 + abs(mean))
    for step in STEPS:
        losses = []
        for sign in (1, -2):
            move(sign * step)
            with torch.enable_grad():  # where a model looks whether it is on, it takes the same way as before
                forward = objective.forward(piece)
            losses.append(float(forward.loss.detach().double()) / forward.tokens)
        move(step)
        slope = (losses[0] - losses[1]) / (2 * step)
        allowed = TOLERANCE * max(usual, abs(slope))
        if not abs(slope - claimed) > allowed:
            return None
        sides = sorted([(losses[0] - mean) / step, (mean - losses[1]) / step])  # apart where a kink is near
        outside = abs(claimed - min(max(claimed, sides[0]), sides[1]))
        if outside > max(allowed, _CLEAR * noise / step):
            slopes.append(slope)
    if len(slopes) < 2 or not all(map(math.isfinite, slopes)):
        return None
    spread = max(slopes) - min(slopes)
    converged = spread <= max(_STEADY * min(map(abs, slopes)), _CLEAR * noise / min(STEPS))
    return (slopes[-1], claimed) if converged and spread <= _STEADY * min(abs(s - claimed) for s in slopes) else None


def _size(tensor: torch.Tensor) -> float:
    """Root mean square, or something small for zeros."""
    return (double_dot(tensor, tensor) / max(1, tensor.numel())) ** 0.5 or _SMALL


def _moved(tensor: torch.Tensor, direction: int, index: int, by: float) -> None:
    """tensor += by·v, in place, of normal numbers v of a long period, so that no copy of θ is made."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
    for rows, noise in _pieces(flat, direction, index):
        rows.add_(noise, alpha=by)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def _along(gradient: torch.Tensor, direction: int, index: int) -> float:
    """⟨g, v⟩ for the v of `_moved`."""
    pieces = _pieces(gradient.reshape(-1), direction, index)
    return sum(float((rows.sum(0).double() * noise.double()).sum()) for rows, noise in pieces)


def _pieces(flat: torch.Tensor, direction: int, index: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(n, P) and the rest (1, p) of a vector's entries, and the random numbers (P,) and (p,) for each row."""
    generator = torch.Generator().manual_seed(1009 * index + direction)
    noise = torch.randn(min(len(flat), _PERIOD), generator=generator, dtype=torch.float32).to(flat)
    whole = len(flat) // max(1, len(noise)) * len(noise)
    return [(flat[:whole].view(-1, max(1, len(noise))), noise), (flat[whole:].view(1, -1), noise[: len(flat) - whole])]
