"""`villani certify --kind path`: noisy runs at every λ, each a unit of work."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from villani.commands.certify.certified_text import START, Prepared, judge, needs_of, opening
from villani.commands.certify.record import BoundRecord, CertificatePoint, CertificateRecord, DriftRecord
from villani.commands.certify.results import ScoredModel, beaten, best_bound, bound_record, certificate_record
from villani.commands.certify.settings import CertifySettings
from villani.dynamics.certificate import ChainPlan, Moments, chain_complexity, token_bound
from villani.dynamics.chain import Moving, run_chain
from villani.dynamics.drift import PriorDrift, Reference
from villani.errors import InputError
from villani.outwards import upper
from villani.statistics import Array
from villani.theory.complexity import path
from villani.theory.pac_bayes import monte_carlo, weaken
from villani.work.budget import Needs
from villani.work.team import Rows
from villani.work.work import Work

_DRAWN = "the one θ that this run ended at"
_LAW = "a fresh draw of θ from the law that such runs end with"


def certify(settings: CertifySettings, prepared: Prepared, work: Work) -> tuple[CertificateRecord, int]:
    """Train J chains at every λ from the centre, where the model is, and certify them; the record, and tokens seen."""
    model = prepared.loaded.model.eval()
    moving = Moving(model, settings.train, settings.scale)
    texts = {"certified": prepared.certified, "held_out": prepared.held_out}
    work.stage("evaluating the prior's centre", START)
    centre = work.once("centre", partial(judge, settings, prepared.loaded, work, **texts))
    scored: dict[float, list[ScoredModel]] = {}
    for number, decay in enumerate(settings.weight_decay):
        scored[decay] = []
        for index in range(settings.chains):
            part = work.part(index, settings.chains)
            words = f"λ = {decay:g} ({number + 1} of {len(settings.weight_decay)}), chain {index + 1}"
            part.stage(words, _stage(decay))
            chain = partial(_chain, settings, prepared, moving, decay, index, part)
            scored[decay].append(ScoredModel(work.once(f"chain/{decay!r}/{index}", chain), settings.alpha))
    share, documents = settings.delta / settings.candidates, prepared.records[0].documents
    spending = Spending.of(share, len(settings.weight_decay), len(settings.alpha), settings.chains)
    record = certificate_record(
        settings, prepared, ScoredModel(centre, settings.alpha), sentence, moving=moving.size,
        spending={
            "path certificate": spending.path, "c4 certificate": spending.chain,
            "Monte Carlo of its empirical risk": spending.monte_carlo,
            "Monte Carlo of its complexity": spending.measured_complexity,
        },
        points=[_point(settings, decay, runs, spending, documents) for decay, runs in scored.items()],
    )  # fmt: skip
    return record, settings.batch * (settings.block - 1) * settings.steps * settings.chains * len(scored)


def _stage(decay: float) -> str:
    return f"noisy runs: λ = {decay!r}"


def needs(settings: CertifySettings, prepared: Prepared) -> Needs:
    """A gradient a step, and a pass over all blocks, a third of one, after every chain."""
    decays = settings.weight_decay
    chains = settings.chains * (settings.steps * settings.batch * settings.block + opening(settings, prepared)[START])
    if settings.prior_drift and prepared.prior is not None:
        fresh = -(-settings.steps // settings.drift_every)
        chains += settings.chains * fresh * (settings.drift_batch or len(prepared.prior.ids)) * settings.block
    stages = {_stage(decay): chains for decay in decays}
    gradients = needs_of(settings, prepared, stages, vectors=10 if settings.prior_drift else 6, kept=len(decays))
    return replace(gradients, memory=gradients.memory + 16.0 * settings.batch * settings.block)


def _chain(
    settings: CertifySettings, prepared: Prepared, moving: Moving, weight_decay: float, index: int, work: Work
) -> Rows:
    """One noisy run, and the losses of where it ends."""
    certified = prepared.certified
    chain = run_chain(
        moving, certified.ids, certified.labels, settings.plan(weight_decay), batch=settings.batch,
        seed=settings.seed, index=index, direction=settings.direction,
        reference=_reference(settings, prepared, moving, index), work=work,
    )  # fmt: skip
    chain.account.check()
    work.stage("losses where it ended")
    row = judge(settings, prepared.loaded, work, certified=certified, held_out=prepared.held_out)
    row |= {
        "log_ratio": np.array(chain.account.log_ratio),
        "squares": np.array(chain.account.squares),
        "losses": chain.losses,
        "clipped": np.array(chain.clipped),
        "moved": np.array(float(chain.w.double().norm())),
    }
    if settings.prior_drift and prepared.prior is not None:
        row |= {"own_squares": chain.squares, "prior_blocks": np.array(len(prepared.prior.ids))}
    if index == 0:
        row["w"] = chain.w.cpu().numpy()
    return row


def _reference(settings: CertifySettings, prepared: Prepared, moving: Moving, index: int) -> Reference | None:
    """What a chain is held against: nothing that moves, or gradients on the prior's text."""
    if not settings.prior_drift:
        return None
    prior = prepared.prior
    assert prior is not None
    drift = PriorDrift(prior.ids, prior.labels, settings.drift_batch, settings.drift_every, settings.at_once)
    return Reference(
        drift, moving, prepared.certified.ids, settings.direction, settings.clip, seed=settings.seed, index=index
    )


@dataclass(frozen=True)
class Spending:
    """How δ is shared out at one λ and one α, so that everything in a record holds at once with probability ≥ 1 − δ."""

    path: float
    chain: float
    monte_carlo: float
    measured_complexity: float

    @classmethod
    def of(cls, delta: float, decays: int, alphas: int, chains: int) -> "Spending":
        """All of δ for the path bound of one chain; with more chains half of it for c4."""
        each = delta / decays / alphas
        if chains == 1:
            return cls(each, 0.0, 0.0, 0.0)
        return cls(each / 2, each / 4, each / 8, each / 8)


def sentence(record: CertificateRecord) -> str:
    """The best certificate in words, and what it beats."""
    best = best_bound(record)
    if best is None:
        return "No certificate was given: " + "; ".join(r for p in record.points for r in p.refusals) + "."
    point, bound = best
    assert isinstance(point, CertificatePoint)
    names = beaten(record, bound)
    names += ["the prior's centre, certified"] if bound.value < record.prior_bound else []
    beats = f"It is below {' and below '.join(names)}" if names else "It beats nothing"
    if bound.value >= record.log_vocabulary:
        beats += ": it is vacuous, since guessing does better"

    def at_most(nats: float) -> str:
        return upper(nats, places=3)

    return (
        f"With probability {1 - record.delta:g} the risk of {bound.predictor} is at most {at_most(bound.value)} nats "
        f"per token ({at_most(bound.bits)} bits; λ = {point.weight_decay:g}, {bound.status}): empirical "
        f"{bound.empirical:.3f}, of which {at_most(bound.monte_carlo)} is Monte Carlo, and {at_most(bound.excess)} for "
        f"a complexity of {upper(bound.complexity, places=0)} nats over {record.tokens:,} tokens. {beats}; ln V = "
        f"{record.log_vocabulary:.3f}, the unigram entropy {record.unigram_entropy:.3f}, the centre's own certificate "
        f"{at_most(record.prior_bound)}, and the held-out bound at the same δ {at_most(point.held_out_bound)}."
    )


def _point(
    settings: CertifySettings, decay: float, runs: Sequence[ScoredModel], spending: Spending, documents: int
) -> CertificatePoint:
    plan, first = settings.plan(decay), runs[0]
    refusals: list[str] = []
    log_ratio = float(first.row["log_ratio"])
    chain = None
    if settings.chains == 1:
        refusals.append("c4: one chain tells nothing of the law that it is drawn from; use --chains")
    else:
        try:
            chain = _chain_bound(plan, runs, spending, documents)
        except InputError as error:
            refusals.append(str(error))
    level = settings.delta / len(settings.weight_decay) / len(settings.alpha)
    noise = 0.0
    for contraction, extra in zip(plan.contractions, plan.noises, strict=True):
        noise = contraction**2 * noise + extra**2
    prior, descent, clip = plan.start == "prior", plan.descent, plan.clip
    return CertificatePoint(
        weight_decay=decay, chains=len(runs), log_ratio=log_ratio,
        path_cost=_cost(plan, first.row["squares"]), drift=_drift(settings, plan, first),
        clip_complexity=descent.clipped(clip).value if prior and descent and clip else None,
        noise=(plan.variance if prior else noise) ** 0.5, moved=float(first.row["moved"]),
        clipped=float(first.row["clipped"]), training_loss=first.training_loss, held_out_loss=first.held_out_loss,
        held_out_bound=first.bound(level), held_out_bound_of_as_many=first.bound(level, tokens=first.tokens()),
        path=first.certificate(
            path(log_ratio, settings.steps, moving_reference=plan.moving_reference), spending.path, _DRAWN, documents
        ),
        chain=chain,
        refusals=refusals,
    )  # fmt: skip


def _cost(plan: ChainPlan, squares: Array) -> float:
    return float((plan.rates**2 * squares / (2 * plan.noises**2)).sum())


def _drift(settings: CertifySettings, plan: ChainPlan, run: ScoredModel) -> DriftRecord | None:
    if not settings.prior_drift:
        return None
    return DriftRecord(
        blocks=int(run.row["prior_blocks"]), batch=settings.drift_batch, every=settings.drift_every,
        still_cost=_cost(plan, run.row["own_squares"]),
    )  # fmt: skip


def _chain_bound(plan: ChainPlan, runs: Sequence[ScoredModel], spending: Spending, documents: int) -> BoundRecord:
    """c4: the mean risk of J chains; its two limits and the second moment each get a third of the Monte-Carlo δ."""
    complexity = chain_complexity(plan, [run.row["squares"] for run in runs], spending.measured_complexity)
    bounds = []
    tokens = runs[0].tokens()
    for of in zip(*(run.losses() for run in runs), strict=True):  # the runs' losses at one α
        smoothing = of[0].smoothing
        first = np.array([moments.first for moments in of])
        level, span, least = spending.monte_carlo / 3, smoothing.oscillation, smoothing.lowest
        limit = monte_carlo(first, level, span=span, lowest=least)
        lower = (
            least + smoothing.highest - monte_carlo(least + smoothing.highest - first, level, span=span, lowest=least)
        )
        squares = np.array([m.second for m in of])  # of losses on both sides of 0, of which the positive reach further
        second = monte_carlo(squares, level, span=smoothing.highest**2, lowest=0.0)
        # V̂ = E ℓ² − 2cE ℓ + c² with 0 ≤ c ≤ highest: at most what these moments give for every such c
        moments = Moments(smoothing, limit, second + 2 * smoothing.highest * (limit - lower))
        more = spending.monte_carlo + spending.measured_complexity
        bound = weaken(token_bound(moments, tokens, complexity.value, spending.chain), "statistical", more)
        added = limit - float(first.mean())
        bounds.append(bound_record(bound, smoothing, complexity, _LAW, tokens, documents, added))
    return min(bounds, key=lambda b: b.value)
