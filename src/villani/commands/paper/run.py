"""`villani study paper`: the preprint's experiments, rerun by one command that survives being killed.

A study is a sweep, whose trained models are what everything else looks at. A unit of work is one training run, or one
experiment at one trained model; convergence and certificates are runs of `villani converge` and `villani certify` in
folders of their own, with their own ledgers and pages. Nothing is measured here: it is done by those that do it anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

from villani.commands.blocks import Settings
from villani.commands.certify.record import CertificatePoint
from villani.commands.paper.choice import choose
from villani.commands.paper.claims import Found, choice_sentence, claims, decay_sentence, sentence
from villani.commands.paper.points import (
    criteria,
    estimator_row,
    estimators_record,
    landscape_point,
    pathology_point,
    reference_trace,
    spectrum_point,
)
from villani.commands.paper.record import (
    ConvergencePoint,
    CriteriaRecord,
    EstimatorsRecord,
    LandscapePoint,
    PaperRecord,
    PathologyPoint,
    SpectrumPoint,
)
from villani.commands.paper.settings import PaperOptions, PaperSettings, Ways
from villani.commands.paper.training import best_decay, learned_curvature, pathology_trends, training_points
from villani.commands.recommend.record import OptimizerRecord
from villani.commands.recommend.sweep import SweepCell, SweepText, needs_of, read_sweep_text, sweep
from villani.commands.running import Outcome, perform
from villani.commands.subject import begin, bits_of, load, provenance_of
from villani.objective.evaluation import same_threads
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.work.budget import LESS
from villani.work.records import CONFIDENCE, Provenance
from villani.work.team import Rows
from villani.work.work import Work

T = TypeVar("T")
_NOMINAL = {  # rough seconds of a unit on one core at --size small: ratios matter, until units have been timed
    "sweep": 30.0, "criteria": 5.0, "landscape": 30.0, "spectra": 20.0, "convergence": 600.0, "certificates": 300.0,
    "estimators": 3.0, "pathologies": 1.0, "choice": 60.0,
}  # fmt: skip

_FREE = {"threads", "trust_remote_code", "adapter"}  # fields of a sweep that its trained models do not depend on


@same_threads()
def run(options: PaperOptions, work: Work) -> Outcome:
    """Do every experiment of a study, and keep what is finished; `settings.toml` of the run is a study of its own."""
    settings = options.read()
    trained = settings.sweep
    begin(trained)
    loaded = load(trained, work)
    text = read_sweep_text(trained, work)
    objective = Objective(loaded.model, text.train.ids[:1][None])
    provenance = provenance_of(objective, "villani study paper --config settings.toml", trained.seed)
    keyed = {
        **{f"sweep.{name}": value for name, value in trained.model_dump(mode="json", exclude=_FREE).items()},
        "token_checksums": [record.token_checksum for record in text.records],
        **bits_of(provenance),
    }
    counts = units(settings)
    needs = needs_of(trained, loaded.model, counts["sweep"], text)
    stages: dict[str, float | None] = {kind: _NOMINAL[kind] * count for kind, count in counts.items()}
    whole = sum(size or 0.0 for size in stages.values()) / (_NOMINAL["sweep"] * counts["sweep"])
    work.open(
        "study-paper", trained.model, keyed, settings.model_dump(mode="json"),
        needs=replace(needs, seconds=whole * (needs.seconds or 0.0), stages=stages), what="this study",
        instead=f"train fewer cells, or {LESS}", device=trained.device,
    )  # fmt: skip
    study = _Study(settings, text, work, provenance)
    fields = study.everything(objective.parameters.size)
    record = PaperRecord.of(
        model=loaded.record, parameters=objective.parameters.size, text=text.records[0], held_out=text.records[1],
        grid=trained.weight_decay, seeds=trained.seeds, optimizers=[*trained.optimizers], steps=trained.steps,
        temperatures=settings.temperature, confidence=CONFIDENCE, provenance=provenance, **fields,
    )  # fmt: skip
    spent = {kind: work.spent(f"{kind}/") for kind in _NOMINAL}
    parts = {kind: seconds for kind, (seconds, _, count) in spent.items() if count}
    for way in settings.estimators.ways if settings.estimators else ():
        parts[f"estimators/{way}"] = work.spent(f"estimators/{way}/")[0]
    cost = work.cost(counts["sweep"] * trained.steps * trained.batch * (trained.block - 1), parts=parts)
    return Outcome([record], {0: cost}, title=f"villani study paper · {trained.model} · {trained.text}")


def units(settings: PaperSettings) -> dict[str, int]:
    """How many units of each kind a study has."""
    trained = settings.sweep.seeds * len(settings.sweep.weight_decay)
    estimators = settings.estimators
    return {
        "sweep": trained * len(settings.sweep.optimizers),
        "criteria": 1 if settings.landscape else 0,
        "landscape": trained if settings.landscape else 0,
        "spectra": trained if settings.spectra else 0,
        "convergence": 1 if settings.convergence else 0,
        "certificates": 1 if settings.certificates else 0,
        "estimators": 1 + len(estimators.ways) * estimators.repeats if estimators else 0,
        "pathologies": trained * len(settings.sweep.optimizers) if settings.pathologies else 0,
        "choice": 1,
    }


@dataclass(frozen=True, eq=False)
class _Study:
    """One run of it."""

    settings: PaperSettings
    text: SweepText
    work: Work
    provenance: Provenance

    def everything(self, parameters: int) -> dict[str, Any]:
        """All fields of the record that are measured."""
        settings, text = self.settings, self.text
        optimizers, grid = [*settings.sweep.optimizers], settings.sweep.weight_decay
        cells = sweep(settings.sweep, self.work.scope("sweep"))
        trained = [c for c in cells if not c.diverged]
        descended = [c for c in trained if c.optimizer == "sgd"]
        criteria_found: list[CriteriaRecord] = []
        landscape: list[LandscapePoint] = []
        spectra: list[SpectrumPoint] = []
        if settings.landscape and descended:
            mask = ParameterSpace(load(settings.sweep, self.work).model, "hf").mask
            make = partial(criteria, settings, descended[0], text, self.work)
            self.work.stage("criteria")
            criteria_found = self.work.once_record(f"criteria/{mask}", list[CriteriaRecord], make)
            landscape = self._each(
                "landscape", "E1, Ψ along rays and orbits", LandscapePoint, descended,
                lambda cell: landscape_point(settings, cell, text, self.work),
            )  # fmt: skip
        if settings.spectra:
            spectra = self._each("spectra", "E2, spectrum", SpectrumPoint, descended, self._spectrum)
        convergence = self._convergence() if settings.convergence else []
        certificates, words = self._certificates() if settings.certificates else ([], "")
        estimators = self._estimators(cells, parameters) if settings.estimators and descended else None
        pathologies: list[PathologyPoint] = []
        if settings.pathologies:
            pathologies = self._each(
                "pathologies", "pathologies", PathologyPoint, trained,
                lambda cell: pathology_point(settings, cell, text, self.work),
            )  # fmt: skip
        tables = {name: training_points(cells, name) for name in optimizers}
        training = [point for points, _ in tables.values() for point in points]
        learned = learned_curvature(spectra, grid)
        judged = claims(
            Found(
                parameters, criteria_found, landscape, spectra, learned, convergence, training, certificates, estimators
            )
        )
        self.work.stage("E6, rules against the grid", "choice")
        choices = self.work.once_record(
            f"choice/{settings.digest('choice')}", list[OptimizerRecord],
            partial(choose, settings, text, cells, certificates, self.work, self.provenance),
        )  # fmt: skip
        return {
            "criteria": criteria_found, "landscape": landscape, "spectra": spectra, "learned": learned,
            "convergence": convergence, "training": training, "certificates": certificates,
            "certificate_sentence": words, "estimators": estimators, "choices": choices, "pathologies": pathologies,
            "trends": pathology_trends(pathologies, optimizers, grid), "claims": judged,
            "common_loss": {name: common for name, (_, common) in tables.items() if common is not None},
            "sentence": sentence(judged), "choice_sentence": choice_sentence(choices),
            "decay_sentence": decay_sentence(training),
        }  # fmt: skip

    def _each(
        self, kind: str, words: str, record: type[T], cells: list[SweepCell], make: Callable[[SweepCell], T]
    ) -> list[T]:
        found = []
        for number, cell in enumerate(cells):
            key = f"{kind}/{self.settings.digest(kind)}/{cell.optimizer}/{cell.weight_decay!r}/{cell.seed}"
            self.work.stage(words, kind)
            self.work.advance(number, len(cells))
            found.append(self.work.once_record(key, record, partial(make, cell)))
        return found

    def _spectrum(self, cell: SweepCell) -> SpectrumPoint:
        """E2; λ₁(∇²F) is worked out by itself for the first training seed only."""
        folder = f"{self.settings.digest('spectra')}-{cell.weight_decay!r}-{cell.seed}"
        both = cell.seed == self.settings.sweep.seed and cell.weight_decay > 0
        return spectrum_point(self.settings, cell, self.text, self.work, folder, both=both)

    def _convergence(self) -> list[ConvergencePoint]:
        def make() -> list[ConvergencePoint]:
            return [
                ConvergencePoint.of(
                    point, diverged=len(point.diverged), promises=[r for r in point.rates if r.side == "at least"]
                )
                for point in self._run("converge", "convergence", self.settings.chains()).points
            ]

        self.work.stage("E3, chains of noisy SGD", "convergence")
        key = f"convergence/{self.settings.digest('convergence')}"
        return self.work.once_record(key, list[ConvergencePoint], make)

    def _certificates(self) -> tuple[list[CertificatePoint], str]:
        def make() -> tuple[list[CertificatePoint], str]:
            record = self._run("certify", "certificates", self.settings.certified())
            return record.points, record.sentence

        self.work.stage("E4, certificates", "certificates")
        key = f"certificates/{self.settings.digest('certificates')}"
        return self.work.once_record(key, tuple[list[CertificatePoint], str], make)

    def _run(self, command: str, part: str, settings: Settings) -> Any:
        """The record of another command's run, in a folder of its own."""
        with self.work.inner(f"{command}-{self.settings.digest(part)}") as inner:
            return perform(settings, inner)[1]

    def _estimators(self, cells: list[SweepCell], parameters: int) -> EstimatorsRecord | None:
        settings, text = self.settings, self.text
        part = settings.estimators
        assert part is not None
        decay = best_decay(cells, "sgd")
        cell = next((c for c in cells if c.optimizer == "sgd" and c.weight_decay == decay and not c.diverged), None)
        if cell is None:
            return None
        words, count = "E5, ways to the trace", part.repeats * len(part.ways) + 1
        mark = settings.digest("estimators")
        self.work.stage(words, "estimators")
        reference = self.work.once(
            f"estimators/reference/{mark}", partial(reference_trace, settings, cell, text, self.work)
        )
        rows: dict[Ways, list[Rows]] = {way: [] for way in part.ways}
        for number, (way, repeat) in enumerate(product(part.ways, range(part.repeats)), 1):
            self.work.stage(words, "estimators")
            self.work.advance(number, count)
            make = partial(estimator_row, settings, cell, text, self.work, way, repeat)
            rows[way].append(self.work.once(f"estimators/{way}/{mark}/{repeat}", make))
        return estimators_record(settings, cell, reference, rows, parameters)
