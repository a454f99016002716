"""`villani study paper`: the preprint's experiments, rerun by one command that survives being killed.

A study is a sweep, whose trained models are what everything else looks at. A unit of work is one training run, or one
experiment at one trained model; convergence and certificates are runs of `villani converge` and `villani certify` in
folders of their own, with their own ledgers and pages. Nothing is measured here: it is done by those that do it anyway.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

from villani.commands.certify.record import CertificatePoint
from villani.commands.certify.settings import CertifySettings
from villani.commands.converge.record import ConvergenceRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.paper import points
from villani.commands.paper.claims import claims, sentence
from villani.commands.paper.forgetting import SHARPNESS_BY, OtherText, effects, looked, looked_before, read_other
from villani.commands.paper.needs import ALONE, tokens, units, weights, with_parts
from villani.commands.paper.needs import looked as looked_tokens
from villani.commands.paper.parts import PARTS, EstimatorsPart, Ways
from villani.commands.paper.points import Study
from villani.commands.paper.record import (
    ConvergencePoint,
    CriteriaRecord,
    EffectRecord,
    EstimatorsRecord,
    LandscapePoint,
    PaperRecord,
    PathologyPoint,
    SpectrumPoint,
)
from villani.commands.paper.schedules import schedule_points
from villani.commands.paper.sentences import choice_sentence, decay_sentence, tuning_sentence
from villani.commands.paper.settings import PaperOptions
from villani.commands.paper.training import best_decay, learned_curvature, pathology_trends, training_points
from villani.commands.recommend.cells import SweepCell
from villani.commands.recommend.record import OptimizerRecord
from villani.commands.recommend.results import Certificates
from villani.commands.recommend.run import Evidence, judge, pairs_of
from villani.commands.recommend.settings import CellKey, RecommendSettings, run_of
from villani.commands.recommend.sweep import GRID_FIELDS, cell_key, needs_of, sweep, told_before
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.commands.running import Outcome, perform
from villani.commands.subject import begin, bits_of, load, outputs, provenance_of
from villani.objective.evaluation import same_threads
from villani.objective.objective import Objective
from villani.objective.parameters import ParameterSpace
from villani.theory.constants import Smoothing
from villani.work.budget import Shape
from villani.work.records import CONFIDENCE
from villani.work.team import Rows
from villani.work.work import Work

T = TypeVar("T")
KINDS = ("sweep", "criteria", *PARTS, "choice")  # of units
_BEFORE = "forgetting/start"  # the unit of E7 that is measured before any training
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
    part = settings.forgetting
    other = read_other(settings, part, text, work, loaded) if part else None
    records = [*text.records, *([other.record] if other else [])]
    named = {
        **{f"sweep.{name}": value for name, value in trained.model_dump(mode="json", exclude=_FREE).items()},
        "token_checksums": [record.token_checksum for record in records],
        **bits_of(provenance),
        **({"grids": settings.grids} if settings.grids else {}),
        **({f"forgetting.{name}": value for name, value in part.model_dump().items()} if part else {}),
    }
    counts = units(settings)
    needs = needs_of(
        trained, objective, counts["sweep"], text, tokens(settings, len(text.held_out.ids), len(text.train.ids)),
        kept=weights(settings), processes=work.team.size, looked=looked_tokens(settings),
        graphs=SHARPNESS_BY.graphs if part and part.groups else 1.0, alone=ALONE,
    )  # fmt: skip
    needs = with_parts(needs, settings, Shape.of(objective.model), work.team.size)
    present = ",".join(name for name in PARTS if getattr(settings, name) is not None)
    grown = {"grids", *(f"sweep.{name}" for name in GRID_FIELDS)}  # cells are units of their own
    work.open(
        "study-paper", trained.model, {name: value for name, value in named.items() if name not in grown},
        settings.model_dump(mode="json"), named=named, needs=needs, what="this study",
        instead=f"leave parts out (--without {present})" if present else "train fewer cells or a smaller model",
        device=trained.device, agreed=options.yes,
    )  # fmt: skip
    study = _Run(settings, text, work, options.keep_weights, other)
    cells = study.trained()
    schedules = schedule_points(study, cells)
    shared = study.shared(cells, objective.parameters.size)
    if not work.team.main:
        return Outcome([])
    work = work.alone()
    study = replace(study, work=work)
    measured = study.measured(cells, **shared)
    record = PaperRecord.of(
        model=loaded.record, parameters=objective.parameters.size, text=text.records[0], held_out=text.records[1],
        grid=[*dict.fromkeys(decay for _, decay, _ in settings.cells())],
        seeds=trained.seeds, optimizers=[*trained.optimizers], steps=trained.steps,
        temperatures=settings.temperature, cut=settings.cuts(), confidence=CONFIDENCE, provenance=provenance,
        grid_note=told_before(work, settings.cells()), schedules=schedules, claims=[], sentence="", **measured,
    )  # fmt: skip
    judged = claims(record)
    record = record.model_copy(update={"claims": judged, "sentence": sentence(judged)})
    if not options.keep_weights:
        shutil.rmtree(work.folder("models"), ignore_errors=True)
    spent = {kind: work.spent(f"{kind}/") for kind in KINDS}
    parts = {kind: seconds for kind, (seconds, _, count) in spent.items() if count}
    for way in settings.estimators.ways if settings.estimators else ():
        parts[f"estimators/{way}"] = work.spent(f"estimators/{way}/")[0]
    runs = counts["sweep"] + sum(len(point.seeds) for point in schedules)
    cost = work.cost(runs * trained.steps * trained.batch * (trained.block - 1), parts=parts)
    return Outcome([record], {0: cost}, title=f"villani study paper · {trained.model} · {trained.text}")


@dataclass(frozen=True, eq=False)
class _Run(Study):
    """One run of a study: what it does, in order, and what it says while it does it."""

    keep_weights: bool = False
    other: OtherText | None = None

    def trained(self) -> list[SweepCell]:
        """The cells of the sweep, which processes share."""
        wanted: Callable[[CellKey], bool] | bool = True if self.keep_weights else self._looks
        look = None
        if (part := self.settings.forgetting) and self.other:
            given = (self.settings, part, self.text, self.other)
            look = partial(looked, *given)
            self.work.stage(PARTS["forgetting"], "forgetting")
            if self.work.team.main:
                loaded = load(self.settings.sweep, self.work)
                self.work.once(_BEFORE, partial(looked_before, *given, loaded))
        return sweep(self.settings.sweep, self.work.scope("sweep"), self.settings.cells(), keep=wanted, look=look)

    def shared(self, cells: list[SweepCell], parameters: int) -> dict[str, Any]:
        """Experiments at single models, which processes share: fields of the record, in every process."""
        settings = self.settings
        trained = [c for c in cells if not c.diverged]
        descended = [c for c in trained if c.optimizer == "sgd"]
        examined: list[list[CriteriaRecord]] = []
        if settings.landscape and descended:
            cell = descended[0]
            decay = cell.weight_decay or max(settings.grid("sgd"))
            mask = ParameterSpace(load(settings.sweep, self.work).model, "hf").mask
            key = f"criteria/{mask}/{decay!r}/{cell.weight_decay!r}/{cell.seed}"
            make = partial(points.criteria, self._lone, cell, decay)
            self.work.stage("criteria")
            self._weights([key], cell)
            examined = self.work.map_records(list[CriteriaRecord], {key: make})
        landscape = self._each(
            "landscape", "E1, Ψ along rays and orbits", LandscapePoint, descended, points.landscape_point
        )
        spectra = self._each("spectra", "E2, spectrum", SpectrumPoint, descended, points.spectrum_point)
        if spectra and self.work.team.main:
            points.forget_vectors(self, [c for c in descended if c.seed in settings.examined("spectra")])
        best = best_decay(cells, "sgd")
        chosen = next((c for c in descended if c.weight_decay == best), None)
        estimators = None
        if settings.estimators and chosen:
            estimators = self._estimators(settings.estimators, chosen, parameters)
        seen = self._each("pathologies", "pathologies", PathologyPoint, trained, points.pathology_point)
        # at λ = 0 optimisers share a run, and what is stored of it may bear another one's name
        named = zip(seen, trained, strict=True) if seen else []
        return {
            "criteria": [record for of in examined for record in of], "landscape": landscape, "spectra": spectra,
            "estimators": estimators,
            "pathologies": [point.model_copy(update={"optimizer": cell.optimizer}) for point, cell in named],
        }  # fmt: skip

    def measured(
        self, cells: list[SweepCell], spectra: list[SpectrumPoint], pathologies: list[PathologyPoint], **shared: Any
    ) -> dict[str, Any]:
        """All fields of the record that are measured; `shared` ones too."""
        settings = self.settings
        optimizers = [*settings.sweep.optimizers]
        grid = [*dict.fromkeys(cell.weight_decay for cell in cells)]
        convergence: list[ConvergencePoint] = []
        certificates: tuple[list[CertificatePoint], str] = ([], "")
        if settings.convergence:
            convergence = self._inner(
                "convergence", settings.chains(), list[ConvergencePoint], _settled, "E3, chains of noisy SGD"
            )
        if settings.certificates:
            certificates = self._inner(
                "certificates", settings.certified(), tuple[list[CertificatePoint], str],
                lambda record: (record.points, record.sentence), "E4, certificates",
            )  # fmt: skip
        tables = {name: training_points(cells, name) for name in optimizers}
        training = [point for row, _ in tables.values() for point in row]
        changed: list[EffectRecord] = []
        if (other := self.other) and (before := self.work.get(_BEFORE)):
            changed = effects(settings, cells, other, before["forgetting"])
        self.work.stage("E6, rules against the grid", "choice")
        choices = self.work.once_record(
            f"choice/{settings.digest('choice')}", list[OptimizerRecord], partial(self._choices, cells, certificates[0])
        )
        return shared | {
            "spectra": spectra, "learned": learned_curvature(spectra, grid), "convergence": convergence,
            "training": training, "certificates": certificates[0], "certificate_sentence": certificates[1],
            "choices": choices, "pathologies": pathologies, "effects": changed,
            "other_text": other.record if other else None, "tuning_sentence": tuning_sentence(changed),
            "trends": pathology_trends(pathologies, optimizers, grid),
            "common_loss": {name: common for name, (_, common) in tables.items() if common is not None},
            "choice_sentence": choice_sentence(choices), "decay_sentence": decay_sentence(choices),
        }  # fmt: skip

    @property
    def _lone(self) -> Study:
        """What a unit does its work with: other processes are at other units."""
        return replace(self, work=self.work.alone())

    def _each(
        self, kind: str, words: str, record: type[T], cells: list[SweepCell], make: Callable[[Study, Any, SweepCell], T]
    ) -> list[T]:
        """An experiment at every one of some trained models; none where the study has no such part."""
        part = getattr(self.settings, kind)
        if part is None:
            return []
        if kind in ("landscape", "spectra"):
            cells = [cell for cell in cells if cell.seed in self.settings.examined(kind)]

        def unit(cell: SweepCell) -> T:
            made = make(self._lone, part, cell)
            self.work.stage(words, kind)  # again, where parts of it were stages too
            return made

        self.work.stage(words, kind)
        keys = [self._key(kind, *run_of((cell.optimizer, cell.weight_decay, cell.seed))) for cell in cells]
        made = self.work.map_records(record, {key: partial(unit, cell) for key, cell in zip(keys, cells, strict=True)})
        of = dict(zip(dict.fromkeys(keys), made, strict=True))  # at λ = 0 optimisers share a run
        return [of[key] for key in keys]

    def _key(self, kind: str, optimizer: str, decay: float, seed: int) -> str:
        return f"{kind}/{self.settings.digest(kind)}/{optimizer}/{decay!r}/{seed}"

    def _looks(self, cell: CellKey) -> bool:
        """Whether what is not finished looks at the weights of a cell, or may: E5 does at the best, unknown before."""
        optimizer, decay, seed = cell
        settings, descended = self.settings, cell[0] == "sgd"
        kinds = ["pathologies"] if settings.pathologies else []
        if descended:
            kinds += [k for k in ("landscape", "spectra") if getattr(settings, k) and seed in settings.examined(k)]
        if any(self.work.kept(self._key(kind, optimizer, decay, seed)) is None for kind in kinds):
            return True
        chosen = settings.landscape or settings.estimators  # the first cell of SGD, and the best
        return descended and chosen is not None and self.work.scope("sweep").kept(cell_key(*cell)) is None

    def _weights(self, keys: Iterable[str], cell: SweepCell) -> None:
        """Train a cell again, to the same bits, whose weights are gone, if any unit that looks at them is missing."""
        missing = not cell.weights.exists() and any(self.work.kept(key) is None for key in keys)
        if self.work.team.broadcast(missing):
            again = (cell.optimizer, cell.weight_decay, cell.seed)
            sweep(self.settings.sweep, self.work.scope("sweep"), [again])

    def _inner(
        self, part: str, settings: ConvergeSettings | CertifySettings, kind: Any, read: Callable[[Any], T], words: str
    ) -> T:  # fmt: skip
        """What is read off the record of another command's run, in a folder of its own."""
        digest = self.settings.digest(part)

        def make() -> T:
            with self.work.inner(f"{settings.name}-{digest}") as inner:
                return read(perform(settings, inner)[1])

        self.work.stage(words, part)
        return self.work.once_record(f"{part}/{digest}/{settings.weight_decay!r}", kind, make)

    def _estimators(self, part: EstimatorsPart, cell: SweepCell, parameters: int) -> EstimatorsRecord:
        mark = f"{self.settings.digest('estimators')}/{cell.weight_decay!r}/{cell.seed}"
        tried = [*product(part.ways, range(part.repeats))]
        units = {f"estimators/reference/{mark}": partial(points.reference_trace, self._lone, part, cell)}
        for way, repeat in tried:
            make = partial(points.estimator_row, self._lone, part, cell, way, repeat)
            units[f"estimators/{way}/{mark}/{repeat}"] = make
        self.work.stage("E5, ways to the trace", "estimators")
        self._weights(units, cell)
        reference, *found = self.work.map(units)
        rows: dict[Ways, list[Rows]] = {way: [] for way in part.ways}
        for (way, _), row in zip(tried, found, strict=True):
            rows[way].append(row)
        return points.estimators_record(part, cell, reference, rows, parameters)

    def _choices(self, cells: list[SweepCell], certificates: list[CertificatePoint]) -> list[OptimizerRecord]:
        """E6: every rule of `villani recommend` against the grid, optimiser by optimiser.

        Certificates are those of E4, of which the sweep knows nothing; the guard is that of a short audit at the start
        of training, in a folder of its own.
        """
        asked = self.settings.sweep
        zero = asked.towards_zero
        rates = {name: asked.learning_rate[name] for name in zero}
        recommend = RecommendSettings.model_validate(asked.model_dump() | {"optimizers": zero, "learning_rate": rates})
        model = load(asked, self.work).model
        bounds = Certificates({p.weight_decay: p.path.value for p in certificates if p.path}, [])
        evidence = Evidence(
            recommend, self.text, ParameterSpace(model, asked.decay), Smoothing(outputs(model), recommend.alpha),
            bounds, *pairs_of(recommend, None, self.work),
        )  # fmt: skip
        return [judge(evidence, optimizer, cells) for optimizer in zero]


def _settled(record: ConvergenceRecord) -> list[ConvergencePoint]:
    return [
        ConvergencePoint.of(
            point, diverged=len(point.diverged), promises=[r for r in point.rates if r.side == "at least"]
        )
        for point in record.points
    ]
