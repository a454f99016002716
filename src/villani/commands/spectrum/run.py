"""What `villani spectrum` does: eigenvalues at both ends, the density between, blocks of layers, and a page."""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from villani.bounds import check_bounds
from villani.commands.finish import default_name, finish
from villani.commands.measure.run import CONFIDENCE, estimate_record
from villani.commands.spectrum.record import (
    BlockRecord,
    DensityRecord,
    EigenvalueRecord,
    QuadratureRecord,
    SharpnessRecord,
    SpectrumDesign,
    SpectrumRecord,
)
from villani.commands.subject import Subject, SubjectSettings, load_subject, objective_record
from villani.curvature.basis import Basis, dot, norm
from villani.curvature.blocks import layers_of
from villani.curvature.lanczos import Ends, Ritz, examine, krylov
from villani.curvature.operators import Budget, Curvature, resident
from villani.curvature.spectrum import Density, Quadrature, quadrature, sphere_probe
from villani.errors import InputError
from villani.objective.evaluation import plain_arithmetic, same_threads
from villani.objective.objective import check_weight_decay
from villani.statistics import Estimate, ratio_estimates
from villani.work import foreign
from villani.work.budget import LESS, Needs, Shape, announce
from villani.work.ledger import Ledger, ScopedLedger, write_settings
from villani.work.memory import peak_memory
from villani.work.progress import Progress, Silent
from villani.work.records import Cost, EstimateRecord
from villani.work.team import Rows, alone


class SpectrumSettings(SubjectSettings):
    """What `villani spectrum` was asked; see its help for each field."""

    name: ClassVar[str] = "spectrum"

    groups: int = 4
    weight_decay: float = 0.1
    operator: Literal["hessian", "gauss-newton"] = "hessian"
    matrix: Literal["loss", "objective"] = "loss"
    top: int = 10
    bottom: int = 4
    tolerance: float = 1e-3
    basis: int | None = None
    most: int = 1000
    density_probes: int = 4
    density_steps: int = 40
    density_shares: int = 1
    held_out: int = 0
    layers: bool = False
    layer_steps: int = 12
    learning_rate: float | None = None
    memory: float = 8.0

    @property
    def ends(self) -> Ends:
        """Which eigenpairs are wanted."""
        return Ends(self.top, self.bottom, self.tolerance, self.most, self.basis)

    def check(self) -> None:
        """Refuse what cannot be worked out before anything is loaded.

        Raises:
            InputError: a number outside its range.
        """
        check_weight_decay(self.weight_decay)
        self.ends.check()
        self.check_least(groups=1, density_probes=0, density_steps=2, density_shares=1, held_out=0, layer_steps=2)
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: expected a non-negative integer")
        if self.most < self.top + self.bottom:
            raise InputError(f"most={self.most}: expected at least {self.top + self.bottom}, one product an eigenpair")
        if self.density_probes == 1 and self.density_shares == 1:
            raise InputError("density_probes=1: expected at least 2 for an error bar, or 0 for no density")
        if self.density_shares > self.groups:
            raise InputError(f"density_shares={self.density_shares}: expected at most groups={self.groups}")
        if self.density_shares > 1 and self.finite:
            raise InputError("density_shares: with finite=True the groups are all the data, and there is no data noise")
        if 0 < self.held_out < 3:
            raise InputError(f"held_out={self.held_out}: expected at least 3 for an interval, or 0 for none")
        if self.held_out and self.finite:
            raise InputError("held_out: with finite=True there are no other data")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate={self.learning_rate}: expected a finite number > 0")
        if self.learning_rate is not None and self.operator != "hessian":
            raise InputError("learning_rate: 2/η is a threshold for the Hessian; use operator hessian")
        if not 0 < self.memory < float("inf"):
            raise InputError(f"memory={self.memory}: expected a number of GiB > 0")
        if self.probes != 1:
            raise InputError("probes: does not apply; see density_probes")


@same_threads()
def spectrum_model(
    settings: SpectrumSettings, run: Path | None = None, data: Path | None = None, progress: Progress | None = None
) -> tuple[Path, SpectrumRecord]:
    """Work out a spectrum, keep every product, and write records, costs, settings, eigenvectors and page.

    Args:
        settings: of what, and how well.
        run: directory; made from the settings when None. The same settings resume it.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        progress: told where the work is.

    Returns:
        the run directory, and its record with what it cost.

    Raises:
        InputError: anything about the input that cannot be worked out; finished products are kept.
    """
    alone("villani spectrum")
    check_bounds(settings)
    settings.check()
    show = progress or Silent()
    subject = load_subject(settings, settings.weight_decay, show, data, groups=settings.groups + settings.held_out)
    free = {"memory", "learning_rate", "density_probes", "layers"}  # bits of rows do not depend on them
    free |= {"weight_decay"} if settings.matrix == "loss" else set()
    keyed = settings.determining(subject.text, subject.provenance, free)
    if settings.matrix == "objective":
        keyed = {**keyed, "decay": subject.objective.parameters.mask}
    directory = run or Path("runs") / default_name("spectrum", settings.model, keyed)
    needs = _needs(settings, subject)
    announce(show, needs, directory, what="this spectrum", instead=f"lower --basis, or {LESS}", device=settings.device)
    with Ledger(directory, keyed) as ledger:
        write_settings(directory, settings.model_dump())
        record = spectrum_of(subject, settings, ledger, directory, show)
        seconds, peak, units = ledger.spent()
        cost = Cost(
            seconds=seconds, seconds_per_group=seconds / units, peak_memory_bytes=peak,
            tokens=sum(subject.objective.groups[g].tokens for g in range(settings.groups)),
            probes=settings.density_probes * settings.density_shares,
        )  # fmt: skip
        finish(directory, f"villani spectrum {settings.model}", [record], {0: cost})
    return directory, record.model_copy(update={"cost": cost})


def _needs(settings: SpectrumSettings, subject: Subject) -> Needs:
    """Products by the rule of thumb of six for a pair, each of about three gradients, and the basis on disk."""
    pairs = settings.top + settings.bottom
    products = min(settings.most, 6 * pairs + 20) + 2 * pairs
    density = settings.density_probes * settings.density_steps
    tokens = 3 * settings.sequences * settings.block * (
        settings.groups * (products + density + settings.layers * 2 * settings.layer_steps) + settings.held_out * pairs
    )  # fmt: skip
    columns = settings.basis or min(2 * pairs + 20, settings.most)
    return Shape.of(subject.loaded.model).work(
        tokens, at_once=settings.at_once, block=settings.block, vectors=6, kept=columns + pairs, device=settings.device
    )  # fmt: skip


def spectrum_of(
    subject: Subject, settings: SpectrumSettings, ledger: Ledger | ScopedLedger, directory: Path, show: Progress
) -> SpectrumRecord:  # fmt: skip
    """The record of one subject; products are kept in the ledger, and vectors in the directory, which must exist."""
    with subject.objective.unchanged(), plain_arithmetic():
        return _Work(subject, settings, ledger, directory, show).record()


class _Work:
    """The units of one run."""

    def __init__(
        self, subject: Subject, settings: SpectrumSettings, ledger: Ledger | ScopedLedger, directory: Path,
        show: Progress,
    ) -> None:  # fmt: skip
        self.subject = subject
        self.settings = settings
        self.ledger = ledger
        self.directory = directory
        self.show = show
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
        ranks = [*range(1, int(pairs["top"][0]) + 1)]
        ranks += [-i for i in range(1, len(pairs["value"]) - len(ranks) + 1)]
        quadratic = [None if np.isnan(x) else float(x) for x in pairs["quadratic"]]
        rounding = float(pairs["bound"][0] - pairs["residual"][0])
        values = [
            EigenvalueRecord(
                rank=rank, rank_limit=float(pairs["value"][i] - rounding * np.sign(rank)),
                value=float(pairs["value"][i]), residual=float(pairs["residual"][i]),
                bound=float(pairs["bound"][i]), quadratic=quadratic[i], status="estimated",
                held_out=held[i], shares=pairs["shares"][i].tolist(),
            )
            for i, rank in enumerate(ranks)
        ]  # fmt: skip
        return SpectrumRecord(
            model=self.subject.loaded.record,
            objective=objective_record(self.objective),
            text=self.subject.text,
            design=SpectrumDesign(
                operator=settings.operator, matrix=settings.matrix, groups=settings.groups,
                sequences=settings.sequences, block=settings.block, held_out=settings.held_out, top=settings.top,
                bottom=settings.bottom, tolerance=settings.tolerance, basis=settings.basis, seed=settings.seed,
                confidence=CONFIDENCE, micro_tokens=settings.micro_tokens,
            ),
            products=int(pairs["products"][0]),
            converged=bool(pairs["converged"][0]),
            rounding=rounding,
            layer_names=list(self.names),
            eigenvalues=values,
            density=density,
            layers=blocks,
            sharpness=self._sharpness(values),
            provenance=self.subject.provenance,
        )  # fmt: skip

    def _operator(self, groups: list[int] | None = None, tensors: list[int] | None = None) -> Curvature:
        chosen = list(range(self.settings.groups)) if groups is None else groups
        return Curvature(self.objective, self.settings.operator, chosen, tensors, self.decay, self.budget)

    def _pairs(self) -> Rows:
        """Values, bounds and shares of the wanted pairs; their vectors are in the run directory by then."""
        folder = self.directory / "basis"
        kept: Rows | None = self.ledger.get("pairs")
        if kept is None:
            self.show.stage("eigenvalues, in products")
            kept = self._solve(folder)
            self.ledger.put("pairs", kept, seconds=0.0, peak_memory_bytes=self.budget.peak())
        shutil.rmtree(folder, ignore_errors=True)
        return kept

    def _solve(self, folder: Path) -> Rows:
        operator = self._operator()

        def product(v: torch.Tensor) -> torch.Tensor:
            w = operator(v)
            if self.budget.peak() > (self.budget.limit or 0):
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
            ritz: Ritz = krylov(
                product, basis, self.settings.ends, self.settings.seed, None, self.ledger,
                self.show.advance,
            )  # fmt: skip
            self.show.stage("eigenvalues: residuals")
            found = examine(
                product, basis, ritz, operator.sizes, rounding, self.ledger, self.directory, self.show.advance
            )
        layers = [[float(pair.shares[list(i)].sum()) for i in self.names.values()] for pair in found]
        sums = np.array(layers).sum(axis=1, keepdims=True)
        return {
            "value": np.array([pair.value for pair in found]),
            "residual": np.array([pair.residual for pair in found]),
            "bound": np.array([pair.bound for pair in found]),
            "quadratic": np.array([np.nan if p.quadratic is None else p.quadratic for p in found], dtype=np.float64),
            "shares": np.array(layers) / sums,
            "products": np.array([float(ritz.products)]),
            "converged": np.array([float(ritz.converged)]),
            "top": np.array([float(ritz.top)]),
        }

    def _held_out(self, pairs: int) -> Sequence[EstimateRecord | None]:
        """Rayleigh quotients of all vectors on groups that they never met."""
        settings = self.settings
        if not settings.held_out:
            return [None] * pairs
        self.show.stage("held-out groups")
        rows = []
        for done, group in enumerate(range(settings.groups, settings.groups + settings.held_out), 1):
            rows.append(self._unit(f"held/{group}", partial(self._quotients, group, pairs)))
            self.show.advance(done, settings.held_out)
        tokens = np.concatenate([row["tokens"] for row in rows])
        sums = np.stack([row["quotients"] for row in rows]) * tokens[:, None]
        means, sems = ratio_estimates(sums, tokens)
        return [
            estimate_record(Estimate(float(m), float(s), len(rows), "statistical"))
            for m, s in zip(means, sems, strict=True)
        ]

    def _quotients(self, group: int, pairs: int) -> Rows:
        operator = self._operator([group])
        quotients = []
        for i in range(pairs):
            kept = foreign.read_vector(
                self.directory / f"vector-{i:02d}.npy", "the run has lost its eigenvectors; choose another --run"
            )
            u = torch.from_numpy(kept).to(self.objective.device)
            quotients.append(dot(u, operator(u)))
        return {"tokens": np.array([float(self.objective.groups[group].tokens)]), "quotients": np.array(quotients)}

    def _density(self) -> DensityRecord:
        settings = self.settings
        shares = [list(range(s, settings.groups, settings.density_shares)) for s in range(settings.density_shares)]
        self.show.stage("density")
        total = len(shares) * settings.density_probes
        samples: list[list[Quadrature]] = []
        for s, groups in enumerate(shares):
            operator = self._operator(groups)
            samples.append([])
            for probe in range(settings.density_probes):
                row = self._unit(
                    f"density/{s}/{probe}",
                    partial(_sample, operator, settings.seed, (0, s, probe), settings.density_steps),
                )
                samples[-1].append(Quadrature(row["nodes"], row["weights"], row["residuals"]))
                self.show.advance(s * settings.density_probes + probe + 1, total)
        parameters = self.objective.parameters
        density = Density(parameters.size, samples, torch.finfo(parameters.dtype).eps)
        grid, values, sem, resolution = density.curve()
        return DensityRecord(
            shares=len(shares), probes=settings.density_probes, steps=settings.density_steps,
            samples=[
                [QuadratureRecord(nodes=q.nodes.tolist(), weights=q.weights.tolist()) for q in share]
                for share in samples
            ],
            grid=grid.tolist(), density=values.tolist(), sem=sem.tolist(), resolution=resolution,
            trace=estimate_record(density.trace), frobenius_squared=estimate_record(density.frobenius_squared),
            effective_rank=estimate_record(density.effective_rank),
            negative_share=estimate_record(density.negative_share()),
        )  # fmt: skip

    def _blocks(self) -> list[BlockRecord]:
        self.show.stage("blocks of layers")
        found = []
        for index, name in enumerate(self.names):
            found.append(self._block(index, name))
            self.show.advance(index + 1, len(self.names))
        return found

    def _block(self, index: int, name: str) -> BlockRecord:
        """The ends and the trace of a layer's diagonal block, from two probes on it alone."""
        settings = self.settings
        operator = self._operator(tensors=list(self.names[name]))
        rows = [
            self._unit(
                f"layer/{index}/{probe}",
                partial(_sample, operator, settings.seed, (1, index, probe), settings.layer_steps),
            )
            for probe in range(2)
        ]
        high = max(rows, key=lambda row: row["nodes"][-1])
        low = min(rows, key=lambda row: row["nodes"][0])
        samples = [[Quadrature(row["nodes"], row["weights"], row["residuals"]) for row in rows]]
        return BlockRecord(
            name=name, parameters=operator.size,
            largest=float(high["nodes"][-1]), largest_residual=float(high["residuals"][-1]),
            smallest=float(low["nodes"][0]), smallest_residual=float(low["residuals"][0]),
            trace=estimate_record(Density(operator.size, samples).trace),
        )  # fmt: skip

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

    def _unit(self, key: str, work: Callable[[], Rows]) -> Rows:
        found: Rows | None = self.ledger.get(key)
        if found is None:
            began = time.perf_counter()
            found = work()
            seconds = time.perf_counter() - began
            self.ledger.put(key, found, seconds=seconds, peak_memory_bytes=self.budget.peak())
        return found


def _sample(operator: Curvature, seed: int, key: tuple[int, ...], steps: int) -> Rows:
    found = quadrature(operator, sphere_probe(operator.parameters, seed, *key), steps)
    return {"nodes": found.nodes, "weights": found.weights, "residuals": found.residuals}
