"""Chains on a potential in closed form, whose gap is known."""

from typing import Any

from villani.commands.blocks import SubjectSettings
from villani.commands.converge.chains import CHAINS, COUPLED, Ensemble, Theory, run_chains
from villani.commands.converge.coupling import coupled
from villani.commands.converge.record import PotentialRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.running import versions
from villani.dynamics.potential import PotentialTarget
from villani.errors import InputError
from villani.theory.catalogue import Case
from villani.theory.exact import solve
from villani.work.budget import Needs
from villani.work.work import Work

_SOLVING = "exact gaps: λ = {!r}, s = {!r}"  # stage
_FREE = {"weight_decay", "temperature", "coupled", *SubjectSettings.model_fields} - {"model", "seed"}


def on_potential(settings: ConvergeSettings, work: Work) -> tuple[list[Ensemble], dict[str, Any], int]:
    """The chains at all λ and s, what the record says they are on, and no tokens."""
    if work.data is not None:
        raise InputError("--data is not used for a potential: leave it out")
    cases = settings.cases()
    values = settings.model_dump(mode="json")
    values["parameters"] = [f"{name}={value!r}" for name, value in settings.parameters.items()]
    keyed = {name: value for name, value in values.items() if name not in _FREE}
    keyed |= versions("villani", "numpy", "scipy", "torch")
    work.open(
        "converge", settings.model, keyed, values, named=values | keyed, needs=_needs(settings, cases),
        what="these chains", instead="choose fewer --chains, --walkers or --steps",
    )  # fmt: skip
    ensembles = [_ensemble(settings, one, work) for one in cases]
    law = cases[-1].potential
    about = dict.fromkeys(("model", "objective", "text", "provenance", "blocks")) | {
        "potential": PotentialRecord.of(law, name=cases[-1].name, expression=law.loss.text),
        "undecayed": 0,
    }
    return ensembles, about, 0


def _place(one: Case) -> tuple[float, float]:
    """λ and s."""
    return one.potential.weight_decay, 2 / one.potential.beta


def _needs(settings: ConvergeSettings, cases: list[Case]) -> Needs:
    """Walkers where they are, were and go, and the rows that are logged."""
    chains, walkers, log_every = settings.sizes
    rows = chains * (settings.steps or 0) // log_every
    positions = chains * walkers * max(one.potential.dimension for one in cases)
    each = ((_SOLVING, None), (CHAINS, 1.0), (COUPLED, 2.0 * (not settings.momentum)))
    return Needs(
        memory=8.0 * (6 * positions + 20 * rows), disk=8.0 * (2 * positions + 20 * rows * len(cases)),
        stages={name.format(*_place(one)): size for one in cases for name, size in each},
    )  # fmt: skip


def _ensemble(settings: ConvergeSettings, one: Case, work: Work) -> Ensemble:
    """All chains at one λ and s, walked as one."""
    chains, walkers, _ = settings.sizes
    law, theory = one.potential, _theory(one, work)
    kernel, name = settings.kernel(law.weight_decay, 2 / law.beta), f"{law.weight_decay!r}/{law.beta!r}"
    units, states = work.scope(name), work.folder("state") / name.replace("/", "-")
    target = PotentialTarget(law, walkers, chains, spread=settings.start == "spread")
    walked = run_chains(settings, target, kernel, units, states)
    near, far = (PotentialTarget(law, walkers, chains, start=sign * target.start) for sign in (1, -1))
    work.stage("two chains with common noise", COUPLED.format(*_place(one)))
    return Ensemble(settings, kernel, target, walked, coupled(near, far, kernel, units, settings), 0, theory)


def _theory(one: Case, work: Work) -> Theory:
    """The gap of the diffusion on a potential, with its status, or why it is not known."""
    law = one.potential
    words = f"solving for the exact gap at λ = {law.weight_decay:g}, β = {law.beta:g}"
    work.stage(words, _SOLVING.format(*_place(one)))
    try:
        truth = solve(law, sobolev=False)
    except InputError as error:
        return Theory(unsolved=str(error), case=one)
    ceiling = 1 / (law.beta * truth.floor) if truth.status != "certified" and truth.floor > 0 else None
    return Theory(1 / (law.beta * truth.poincare), truth.status, ceiling, case=one)
