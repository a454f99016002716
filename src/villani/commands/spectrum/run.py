"""What `villani spectrum` does: eigenvalues at both ends, the density between, blocks of layers, and a page."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from villani.commands.running import Outcome
from villani.commands.spectrum.record import (
    BlockRecord,
    DensityRecord,
    EigenvalueRecord,
    SharpnessRecord,
    SpectrumDesign,
    SpectrumRecord,
)
from villani.commands.spectrum.results import density_record, eigenvalue_records, pair_rows
from villani.commands.spectrum.settings import SpectrumSettings
from villani.commands.subject import Subject, determining, load_subject
from villani.curvature.basis import Basis, dot, norm
from villani.curvature.blocks import layers_of
from villani.curvature.lanczos import krylov
from villani.curvature.operators import Budget, Curvature
from villani.curvature.pairs import examine
from villani.curvature.spectrum import Density, Quadrature, quadrature, sphere_probe
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic, same_threads
from villani.statistics import Estimate, ratio_estimates
from villani.work import foreign
from villani.work.budget import LESS, Needs, available_memory, size
from villani.work.memory import peak_memory, resident
from villani.work.records import CONFIDENCE, EstimateRecord
from villani.work.team import Rows
from villani.work.work import Work

_ENDS, _RESIDUALS, _HELD_OUT, _DENSITY, _BLOCKS = (
    "eigenvalues", "residuals of eigenvalues", "held-out groups", "density", "blocks of layers",
)  # fmt: skip
_FREE = {"memory", "learning_rate", "density_probes", "layers"}  # bits of rows do not depend on them

_VECTORS = 6  # arrays of the size of θ, beside it


@same_threads()
def run(settings: SpectrumSettings, work: Work) -> Outcome:
    """Work out a spectrum, and keep every product and the eigenvectors; the same settings resume a run."""
    subject = load_subject(
        settings, work, settings.weight_decay, groups=settings.groups + settings.held_out,
        streamed=partial(_refuse, settings),
    )  # fmt: skip
    of_loss = settings.matrix == "loss"
    keyed = determining(settings, subject.text, subject.provenance, _FREE | ({"weight_decay"} if of_loss else set()))
    if not of_loss:
        keyed["decay"] = subject.objective.parameters.mask
    directory = work.open(
        "spectrum", settings.model, keyed, settings.model_dump(), needs=_needs(settings, subject),
        what="this spectrum", instead=f"lower --basis, or {LESS}", device=settings.device,
    )  # fmt: skip
    record = spectrum_of(subject, settings, work, directory)
    tokens = sum(subject.objective.groups[g].tokens for g in range(settings.groups))
    return Outcome([record], {0: work.cost(tokens, settings.density_probes * settings.density_shares)})


def _refuse(settings: SpectrumSettings, theta: float) -> bool:
    """Refuse a θ of so many bytes that does not fit with the vectors that every product takes; never stream it."""
    have, source = available_memory(settings.device)
    if (1 + _VECTORS) * theta > have:
        basis = size(settings.columns * theta)
        raise InputError(
            f"a spectrum of {settings.model} would take about {size((1 + _VECTORS) * theta)} of memory for θ and "
            f"{_VECTORS} vectors like it, and {basis} on disk for a basis, and {size(have)} are "
            f"{source}: streamed weights do not serve it; choose a smaller model, or villani measure, which streams"
        )
    return False


def _needs(settings: SpectrumSettings, subject: Subject) -> Needs:
    """Products by the rule of thumb of six for a pair, each of about three gradients, and the basis on disk."""
    pairs, group = settings.top + settings.bottom, 3.0 * settings.sequences * settings.block  # tokens of a product
    whole = group * settings.groups
    blocks = len(layers_of(subject.objective.parameters)) * settings.layers
    stages = {
        _ENDS: whole * min(settings.most, 6 * pairs + 20), _RESIDUALS: whole * 2 * pairs,
        _HELD_OUT: group * settings.held_out * pairs,
        _DENSITY: whole * settings.density_probes * settings.density_steps,
        _BLOCKS: whole * blocks * 2 * settings.layer_steps,
    }  # fmt: skip
    return subject.needs(settings, stages, vectors=_VECTORS, kept=settings.columns + pairs)


def spectrum_of(
    subject: Subject, settings: SpectrumSettings, work: Work, directory: Path, *, strict: bool = True
) -> SpectrumRecord:
    """The record of one subject; products are units of work, and vectors lie in the directory, which must exist.

    If not `strict`, the memory of the settings is what vectors are kept in, and products take what they take.
    """
    with subject.objective.unchanged(), plain_arithmetic():
        return _Parts(subject, settings, work, directory, strict).record()


class _Parts:
    """What a spectrum is made of, part by part."""

    def __init__(self, subject: Subject, settings: SpectrumSettings, work: Work, directory: Path, strict: bool) -> None:
        self.subject = subject
        self.settings = settings
        self.work = work
        self.directory = directory
        self.strict = strict
        self.objective = subject.objective
        self.names = layers_of(self.objective.parameters)
        self.budget = Budget(
            int(settings.memory * 2**30), partial(peak_memory, self.objective.device)
        )  # what is kept within it moves no bits
        self.decay = settings.weight_decay if settings.matrix == "objective" else 0.0

    def record(self) -> SpectrumRecord:
        settings = self.settings
        pairs = self._pairs()
        held = self._held_out(len(pairs["value"]))
        density = self._density() if settings.density_probes else None
        blocks = self._blocks() if settings.layers else []
        values = eigenvalue_records(pairs, int(pairs["top"][0]), held)
        return SpectrumRecord(
            **self.subject.facts, design=SpectrumDesign.of(settings, confidence=CONFIDENCE),
            products=int(pairs["products"][0]), converged=bool(pairs["converged"][0]), layer_names=list(self.names),
            rounding=values[0].bound - values[0].residual, eigenvalues=values, density=density, layers=blocks,
            sharpness=self._sharpness(values),
        )  # fmt: skip

    def _operator(self, groups: list[int] | None = None, tensors: list[int] | None = None) -> Curvature:
        chosen = list(range(self.settings.groups)) if groups is None else groups
        return Curvature(self.objective, self.settings.operator, chosen, tensors, self.decay, self.budget)

    def _pairs(self) -> Rows:
        """Values, bounds and shares of the wanted pairs; their vectors are in the run directory by then."""
        folder = self.directory / "basis"
        pairs = self.work.get("pairs")
        if pairs is None:
            pairs = self._solve(folder)
            self.work.put("pairs", pairs)  # its products are units with seconds of their own
        shutil.rmtree(folder, ignore_errors=True)
        return pairs

    def _solve(self, folder: Path) -> Rows:
        self.work.stage("eigenvalues, in products", _ENDS)
        operator = self._operator()

        def product(v: torch.Tensor) -> torch.Tensor:
            w = operator(v)
            if self.strict and self.budget.peak() > (self.budget.limit or 0):
                raise InputError(
                    f"memory={self.settings.memory:g} GiB: one product took {self.budget.peak() / 2**30:.2f} GiB in "
                    "all: lower micro_tokens, or raise memory"
                )
            return w

        def rounding(u: torch.Tensor, w: torch.Tensor) -> float:
            return norm(operator.otherwise(u).sub_(w))

        if folder.exists():  # resumed: what a product takes is known before columns are read back into memory
            product(torch.zeros(operator.size, dtype=operator.dtype, device=self.objective.device))
            if self.objective.device.type == "cpu":
                self.budget.working = max(0, self.budget.peak() - resident())
        with Basis(operator.size, operator.dtype, self.objective.device, folder, self.budget) as basis:
            ritz = krylov(product, basis, self.settings.ends, self.settings.seed, None, self.work)
            self.work.stage("eigenvalues: residuals", _RESIDUALS)
            pairs = examine(product, basis, ritz, operator.sizes, rounding, self.work, self.directory)
        whole = {name: np.array([float(getattr(ritz, name))]) for name in ("products", "converged", "top")}
        return pair_rows(pairs, self.names) | whole

    def _held_out(self, pairs: int) -> Sequence[EstimateRecord | None]:
        """Rayleigh quotients of all vectors on groups that they never met."""
        settings = self.settings
        if not settings.held_out:
            return [None] * pairs
        self.work.stage(_HELD_OUT)
        groups = range(settings.groups, settings.groups + settings.held_out)
        rows = self.work.map({f"held/{group}": partial(self._quotients, group, pairs) for group in groups})
        tokens = np.concatenate([row["tokens"] for row in rows])
        sums = np.stack([row["quotients"] for row in rows]) * tokens[:, None]
        means, sems = ratio_estimates(sums, tokens)
        return [
            EstimateRecord.model_validate(Estimate(float(m), float(s), len(rows), "statistical"))
            for m, s in zip(means, sems, strict=True)
        ]

    def _quotients(self, group: int, pairs: int) -> Rows:
        operator = self._operator([group])
        quotients = []
        for i in range(pairs):
            vector = foreign.read_vector(
                self.directory / f"vector-{i:02d}.npy", "the run has lost its eigenvectors; choose another --run"
            )
            u = torch.from_numpy(vector).to(self.objective.device)
            quotients.append(dot(u, operator(u)))
        return {"tokens": np.array([float(self.objective.groups[group].tokens)]), "quotients": np.array(quotients)}

    def _density(self) -> DensityRecord:
        settings = self.settings
        shares = [list(range(s, settings.groups, settings.density_shares)) for s in range(settings.density_shares)]
        self.work.stage(_DENSITY)
        total = len(shares) * settings.density_probes
        samples: list[list[Quadrature]] = []
        for s, groups in enumerate(shares):
            operator = self._operator(groups)
            samples.append([])
            for probe in range(settings.density_probes):
                key = f"density/{s}/{probe}"
                samples[-1].append(self._probed(key, operator, (0, s, probe), settings.density_steps))
                self.work.advance(s * settings.density_probes + probe + 1, total)
        parameters = self.objective.parameters
        density = Density(parameters.size, samples, torch.finfo(parameters.dtype).eps)
        return density_record(density, settings.density_steps)

    def _blocks(self) -> list[BlockRecord]:
        """The ends and the trace of each layer's diagonal block, from two probes on it alone."""
        self.work.stage(_BLOCKS)
        blocks = []
        for index, (name, tensors) in enumerate(self.names.items()):
            operator = self._operator(tensors=list(tensors))
            samples = [
                self._probed(f"layer/{index}/{probe}", operator, (1, index, probe), self.settings.layer_steps)
                for probe in range(2)
            ]
            high = max(samples, key=lambda sample: sample.nodes[-1])
            low = min(samples, key=lambda sample: sample.nodes[0])
            blocks.append(
                BlockRecord.of(
                    Density(operator.size, [samples]), name=name, parameters=operator.size,
                    largest=float(high.nodes[-1]), largest_residual=float(high.residuals[-1]),
                    smallest=float(low.nodes[0]), smallest_residual=float(low.residuals[0]),
                )
            )  # fmt: skip
            self.work.advance(index + 1, len(self.names))
        return blocks

    def _probed(self, key: str, operator: Curvature, place: tuple[int, ...], steps: int) -> Quadrature:
        """What the probe of a place among all says, a unit of work."""

        def make() -> Rows:
            sample = quadrature(operator, sphere_probe(operator.parameters, self.settings.seed, *place), steps)
            return {name: getattr(sample, name) for name in ("nodes", "weights", "residuals")}

        row = self.work.once(key, make)
        return Quadrature(row["nodes"], row["weights"], row["residuals"])

    def _sharpness(self, values: list[EigenvalueRecord]) -> SharpnessRecord | None:
        rate = self.settings.learning_rate
        if rate is None or values[0].rank != 1:
            return None
        first = values[0]
        rounding = first.bound - first.residual
        space = self.objective.parameters
        every = bool(space.decayed.all())
        added = 0.0 if self.decay else self.settings.weight_decay  # λ_1(∇²L) + [0, λ] holds λ_1(∇²F) (Weyl)
        low = first.value - rounding + (added if every else 0.0)
        high = first.value + first.bound + added
        unstable = True if low > 2 / rate else False if high < 2 / rate else None
        return SharpnessRecord(learning_rate=rate, threshold=2 / rate, low=low, high=high, unstable=unstable)
