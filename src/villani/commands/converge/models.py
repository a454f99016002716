"""Chains on a model's loss over a text, taken as the whole data set."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from villani.commands.converge.chains import CHAINS, COUPLED, Ensemble, Theory, run_chains
from villani.commands.converge.coupling import Apart, coupled
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.subject import Subject, determining, load_subject, objective_record, vocabulary
from villani.dynamics.kernel import Kernel
from villani.dynamics.network import NetworkTarget
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.streams import Purpose, word
from villani.work.budget import Needs
from villani.work.stretches import read_state, write_state
from villani.work.work import Work

_FREE = {"weight_decay", "temperature", "chains", "coupled", "walkers", "parameters", "dimension"}


def on_model(settings: ConvergeSettings, work: Work) -> tuple[list[Ensemble], dict[str, Any], int]:
    """The chains at all λ and s, what the record says they are on, and tokens of a step; weights are as before."""
    subject = load_subject(settings, work, settings.weight_decay[0])
    objective, space = subject.objective, subject.objective.parameters
    keyed = determining(settings, subject.text, subject.provenance, _FREE) | {"decay": space.mask}
    work.open(
        "converge", settings.model, keyed,
        settings.model_dump(exclude={"parameters", "dimension", "walkers"})
        | {"parameter_checksum": subject.provenance.parameter_checksum},
        named=settings.model_dump(exclude={"adapter"}) | keyed, needs=_needs(settings, subject), what="these chains",
        device=settings.device,
    )  # fmt: skip
    theory = Theory(vocabulary=vocabulary(subject.loaded.model))
    ensembles = []
    with _at_the_start(objective, work.folder("state") / "start.safetensors") as start:
        for decay, s in product(settings.weight_decay, settings.temperature):
            read_state(start, list(space.tensors))
            kernel, name = settings.kernel(decay, s), f"{decay!r}/{s!r}"
            units, states = work.scope(name), start.with_name(name.replace("/", "-"))
            target = _Restarting(start, objective, settings, kernel)
            with target.running():
                chains = run_chains(settings, target, kernel, units, states, partial(_psi, subject, target, settings))
            pair = None
            if settings.coupled:
                work.stage("two chains with common noise", COUPLED.format(decay, s))
                copy = Objective(
                    deepcopy(subject.loaded.model), objective.groups, decay=settings.decay, finite=True,
                    micro_tokens=settings.micro_tokens,
                )  # fmt: skip
                twin = Apart(copy, target, settings.seed)
                with target.running(), twin.running():
                    pair = coupled(target, twin, kernel, units, settings)
            undecayed = space.size - (space.decayed_size if decay else 0)
            ensembles.append(Ensemble(settings, kernel, target, chains, pair, undecayed, theory))
    about = {
        "model": subject.loaded.record, "objective": objective_record(objective), "text": subject.text,
        "potential": None, "provenance": subject.provenance, "undecayed": space.size - space.decayed_size,
        "blocks": target.blocks,
    }  # fmt: skip
    return ensembles, about, (settings.batch or target.blocks) * target.tokens // target.blocks


def _needs(settings: ConvergeSettings, subject: Subject) -> Needs:
    """A gradient a step of every chain; θ at the start, where it is and where it was, on disk."""
    whole = settings.groups if settings.batch is None else 1
    measured = 4 * settings.psi_groups / settings.psi_every if settings.psi_every else 0.0
    tokens = float((settings.steps or 0) * settings.sequences * settings.block)  # of a chain with groups of one
    stages: dict[str, float] = {}
    for place in product(settings.weight_decay, settings.temperature):
        stages[CHAINS.format(*place)] = (settings.chains or 0) * tokens * (whole + measured)
        stages[COUPLED.format(*place)] = 2 * settings.coupled * tokens * whole
    moving = 2 if settings.momentum else 1
    return subject.shape.work(
        stages, at_once=settings.at_once, block=settings.block, vectors=3 * moving + 4 * settings.coupled,
        kept=1 + 2 * moving, device=settings.device,
    )  # fmt: skip


@contextmanager
def _at_the_start(objective: Objective, path: Path) -> Iterator[Path]:
    """A file of θ as it is now; θ is put back at the end, since the model is not this command's alone."""
    tensors: list[torch.Tensor] = list(objective.parameters.tensors)
    write_state(path, tensors)
    try:
        yield path
    finally:
        read_state(path, tensors)


class _Restarting(NetworkTarget):
    """A model whose chains begin at the weights in a file: no second copy of them in memory."""

    def __init__(self, start: Path, objective: Objective, settings: ConvergeSettings, kernel: Kernel) -> None:
        decay = kernel.weight_decay
        super().__init__(
            objective, batch=settings.batch, seed=settings.seed, spread=settings.start == "spread",
            prior=(kernel.temperature / (2 * decay)) ** 0.5 if decay else float("inf"),
        )  # fmt: skip
        self.kernel = kernel
        self._start = start

    def reset(self, chain: int) -> None:
        """The weights of the file, then as `NetworkTarget.reset`."""
        read_state(self._start, self.tensors)
        super().reset(chain)


def _psi(subject: Subject, target: _Restarting, settings: ConvergeSettings, chain: int, step: int) -> Array:
    """(Ψ, ΔF, ‖∇F‖²), unbiased, on independent groups of the data set drawn for this chain and step."""
    decay, s = target.kernel.weight_decay, target.kernel.temperature
    objective = Objective(
        subject.loaded.model, target.sample(settings.psi_groups, chain, step), decay, settings.decay,
        micro_tokens=settings.micro_tokens,
    )  # fmt: skip
    measurement = measure(objective, seed=word(settings.seed, Purpose.PROBE, chain, step), trace="gauss-newton")
    psi = measurement.psi(decay, temperature=s).value
    laplacian = measurement.hessian_trace.value + decay * objective.parameters.decayed_size
    return np.array([psi, laplacian, s * (psi + laplacian)])
