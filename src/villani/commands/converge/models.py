"""Chains on a model's loss over a text, taken as the whole data set."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from villani.commands.converge.chains import CHAINS, COUPLED, Ensemble, Theory, cost_of, divergence_records, run_chain
from villani.commands.converge.coupling import coupled_models
from villani.commands.converge.record import ConvergenceRecord, DynamicsRecord
from villani.commands.converge.results import chains_record
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.running import Outcome
from villani.commands.subject import Subject, determining, load_subject, objective_record, vocabulary
from villani.dynamics.kernel import Kernel
from villani.dynamics.langevin import STANDARD
from villani.dynamics.network import NetworkTarget
from villani.inputs.models import load_model
from villani.measurement.measure import measure
from villani.objective.evaluation import same_threads
from villani.objective.objective import Objective
from villani.statistics import Array
from villani.streams import Purpose, word
from villani.work.budget import Needs, Shape
from villani.work.records import CONFIDENCE
from villani.work.stretches import read_state, write_state
from villani.work.work import Work

_FREE = {"weight_decay", "temperature", "chains", "coupled", "walkers", "parameters", "dimension"}


@same_threads()
def on_model(settings: ConvergeSettings, work: Work) -> Outcome:
    """The record of all λ and s; the weights are as before at the end."""
    subject = load_subject(settings, work, settings.weight_decay[0])
    space = subject.objective.parameters
    keyed = determining(settings, subject.text, subject.provenance, _FREE) | {"decay": space.mask}
    directory = work.open(
        "converge", settings.model, keyed,
        settings.model_dump(exclude={"parameters", "dimension", "walkers"})
        | {"parameter_checksum": subject.provenance.parameter_checksum},
        named=settings.model_dump(exclude={"adapter"}) | keyed, needs=_needs(settings, subject), what="these chains",
        device=settings.device,
    )  # fmt: skip
    ensembles = []
    with _at_the_start(subject.objective, directory / "state" / "start.safetensors") as start:
        for decay, s in product(settings.weight_decay, settings.temperature):
            read_state(start, list(space.tensors))
            target = _Restarting(start, subject.objective, settings, settings.kernel(decay, s))
            ensembles.append(_ensemble(subject, target, settings, work, directory))
    theory = Theory(vocabulary=vocabulary(subject.loaded.model))
    record = ConvergenceRecord(
        model=subject.loaded.record, objective=objective_record(subject.objective), text=subject.text, potential=None,
        design=DynamicsRecord.of(settings, blocks=target.blocks, confidence=CONFIDENCE),
        undecayed=space.size - space.decayed_size,
        points=[chains_record(ensemble, theory) for ensemble in ensembles], provenance=subject.provenance,
    )  # fmt: skip
    shutil.rmtree(directory / "state", ignore_errors=True)
    tokens = target.tokens if settings.batch is None else settings.batch * target.tokens // target.blocks
    return Outcome([record], {0: cost_of(ensembles, work, tokens)})


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
    return Shape.of(subject.loaded.model).work(
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


def _ensemble(
    subject: Subject, target: _Restarting, settings: ConvergeSettings, work: Work, directory: Path
) -> Ensemble:
    """The chains at one λ and s."""
    count, _, log_every = settings.sizes
    kernel, space = target.kernel, subject.objective.parameters
    decay, s = kernel.weight_decay, kernel.temperature
    units = work.scope(f"{decay!r}/{s!r}")
    chains, diverged = [], []
    for number in range(count):
        part = units.part(number, count)
        part.stage(f"chain {number + 1} of {count} at λ = {decay:g}, s = {s:g}", CHAINS.format(decay, s))
        with target.running():
            chain = run_chain(
                target, kernel, part, directory / "state" / f"{decay!r}-{s!r}", seed=settings.seed, chain=number,
                log_every=log_every, inspect=partial(_psi, subject, target, settings, number),
                inspect_every=settings.psi_every,
            )  # fmt: skip
            diverged += divergence_records(chain, target, kernel, 1, number)
        chains.append(chain)
    pair = None
    if settings.coupled:
        work.stage("two chains with common noise", COUPLED.format(decay, s))
        twin = _twin(subject, settings)
        pair = coupled_models(target, twin, kernel, units, seed=settings.seed, log_every=log_every)
    return Ensemble(
        settings=settings, kernel=kernel, names=(*STANDARD, *target.extras), chains=tuple(chains), pair=pair,
        diverged=diverged, dimension=space.size, undecayed=space.size - (space.decayed_size if decay else 0),
    )  # fmt: skip


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


def _twin(subject: Subject, settings: ConvergeSettings) -> Objective:
    """A second copy of the model on the same data."""
    model = load_model(
        settings.model, dtype=subject.objective.parameters.dtype, device=settings.device,
        trust_remote_code=settings.trust_remote_code, allow_unused=settings.allow_unused,
        adapter=settings.adapter,
    ).model  # fmt: skip
    return Objective(
        model, subject.objective.groups, decay=settings.decay, finite=True, micro_tokens=settings.micro_tokens
    )
