"""Langevin dynamics of a model as a library call: chains of an objective's θ, and what was seen along them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from villani.dynamics.kernel import Kernel, Method, Schedule
from villani.dynamics.langevin import STANDARD, advance
from villani.dynamics.network import NetworkTarget
from villani.errors import InputError, check_whole
from villani.objective.evaluation import plain_arithmetic
from villani.objective.objective import Objective
from villani.objective.weights import refuse_streamed
from villani.statistics import Array


@dataclass(frozen=True, eq=False)
class Chain:
    """What was seen along one chain; each entry is of θ before a step.

    Attributes:
        steps: (n,) logged steps.
        times: (n,) time of the diffusion at them, the sum of η/(1 − μ) before.
        observables: name → (n,): `loss` and `objective`, L and F in nats per predicted token of the step's blocks;
            `norm_squared`, ‖θ‖²; `radial_force`, ⟨θ, ∇F⟩; `gradient_squared`, ‖∇F‖² of the step's blocks, which of a
            mini-batch is no estimate of the whole data set's; `linear_0` to `linear_2`, u·θ of fixed unit vectors.
        accepted: share of the steps that moved; below 1 with MALA only.
        diverged: the step at which F was not finite or out of all bounds, which ends a chain; None if it never was.
    """

    steps: Array
    times: Array
    observables: Mapping[str, Array]
    accepted: float
    diverged: int | None


class Langevin:
    """Chains of dθ = −∇F dt + √s dW, whose law would be exp(−2F/s); F = L + (λ/2)‖m⊙θ‖² of the groups as all there is.

        chain = villani.Langevin(objective, temperature=1e-4, learning_rate=1e-2, steps=100, batch=4).run()
        print(chain.times[-1], chain.observables["loss"])

    What a chain shows, as a loss that settles, does not prove that it has reached that law, nor a spectral gap:
    `villani.converge` says what follows from several.

    Args:
        objective: its λ and mask; its groups are blocks of equal length, padded on the right, and the whole data set.
        temperature: s > 0.
        learning_rate: η > 0, the step size, with `cosine` at its largest.
        steps: K, of a chain.
        method: `noisy-sgd`, biased by O(η); `matched`, its noise right for the decay; `mala`, exact, `batch` None only.
        momentum: μ in [0, 1), with noisy-sgd only.
        schedule: of η: `constant`, or `cosine` down to a tenth; s stays.
        batch: blocks of a step, drawn with replacement; None for ∇L of the whole data set.
        seed: of noise, batches and acceptance, a whole number ≥ 0; with `run`'s chain it fixes all that is random.

    Raises:
        InputError: a number out of range, things that do not go together, or groups that have no such dynamics.
    """

    def __init__(
        self, objective: Objective, *, temperature: float, learning_rate: float, steps: int,
        method: Method = "noisy-sgd", momentum: float = 0.0, schedule: Schedule = "constant", batch: int | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if not isinstance(objective, Objective):
            raise InputError(f"objective is a {type(objective).__name__}: expected a villani.Objective")
        for name, value, known in (("method", method, Method), ("schedule", schedule, Schedule)):
            if value not in get_args(known):
                raise InputError(f"{name}={value!r}: expected {', '.join(get_args(known))}")
        check_whole(1, steps=steps, **({} if batch is None else {"batch": batch}))
        check_whole(0, seed=seed)
        if method == "mala" and batch is not None:
            raise InputError(f"batch={batch}: mala needs the gradient of the whole data set; use batch=None")
        refuse_streamed(objective.model, "a chain", "load the model with streamed=False")
        self.rule = Kernel(objective.weight_decay, temperature, learning_rate, int(steps), method, momentum, schedule)
        self.target = NetworkTarget(objective, batch=batch, seed=int(seed))
        self.seed = int(seed)

    @plain_arithmetic()
    def run(self, chain: int = 0, *, log_every: int = 1) -> Chain:
        """One chain of K steps from the model's present θ, which is moved in place and left where the chain ends.

        For another chain from the same start, put the weights back (`load_state_dict`) and give another number. Dropout
        is off meanwhile; `.grad` is None afterwards.

        Args:
            chain: its number, ≥ 0: chains of different numbers have independent noise and batches.
            log_every: steps between entries.

        Raises:
            InputError: a number out of range, or a forward pass that fails.
        """
        check_whole(0, chain=chain)
        check_whole(1, log_every=log_every)
        target, rule = self.target, self.rule
        velocity = [torch.zeros_like(t) for t in target.tensors] if rule.momentum else None
        with target.running():
            piece = advance(
                target, rule, seed=self.seed, chain=int(chain), velocity=velocity, log_every=int(log_every)
            )  # fmt: skip
        names = (*STANDARD, *target.extras)
        rows = np.array([row[:, 0] for row in piece.rows]).reshape(-1, len(names))  # (n, k)
        return Chain(
            steps=np.array(piece.steps, dtype=float),
            times=rule.times(piece.steps),
            observables=dict(zip(names, rows.T, strict=True)),
            accepted=piece.accepted / max(piece.stop, 1),
            diverged=piece.diverged,
        )
