"""E6: the choice of λ on the study's own sweep, by the mechanism of `villani recommend`."""

from collections.abc import Sequence
from pathlib import Path

from villani.landscape.models import load_model
from villani.landscape.parameters import ParameterSpace
from villani.runs.certificates import CertificatePoint
from villani.runs.recommendations import OptimizerRecord
from villani.runs.records import Provenance
from villani.studies.constants import outputs
from villani.studies.paper_settings import PaperSettings
from villani.studies.progress import Progress
from villani.studies.recommend import Certificates, RecommendSettings, pairs_of, rules_of
from villani.studies.recommendation_records import Found, assemble
from villani.studies.sweep import SweepCell, SweepText, by_decay
from villani.theory.constants import Smoothing


def choose(
    settings: PaperSettings, text: SweepText, cells: Sequence[SweepCell], certificates: Sequence[CertificatePoint],
    directory: Path, data: Path | None, show: Progress, provenance: Provenance,
) -> list[OptimizerRecord]:  # fmt: skip
    """Every rule of `villani recommend` against the grid, optimiser by optimiser.

    Certificates are those of E4, of which the sweep knows nothing; the guard is that of a short audit at the start of
    training, in a folder of its own.
    """
    asked = RecommendSettings.model_validate(settings.sweep.model_dump())
    loaded = load_model(settings.sweep.model)
    space = ParameterSpace(loaded.model, settings.sweep.decay)
    smoothing = Smoothing(outputs(loaded.model), asked.alpha)
    bounds = Certificates({p.weight_decay: p.path.value for p in certificates if p.path}, [])
    pairs, source = pairs_of(asked, None, directory, data, show)
    found = []
    for optimizer in settings.sweep.optimizers:
        run = asked.training(optimizer, len(text.train.ids), space.size, space.decayed_size == space.size)
        rules = rules_of(asked, run, smoothing, bounds, pairs, source)
        found.append(Found(run, by_decay(cells, optimizer), {}, rules, bounds.bounds, []))
    return assemble(asked, loaded.record, text, space, smoothing, found, provenance).optimizers
