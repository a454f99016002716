"""E6: the choice of λ on the study's own sweep, by the mechanism of `villani recommend`."""

from collections.abc import Sequence
from pathlib import Path

from villani.commands.certify.record import CertificatePoint
from villani.commands.constants.run import outputs
from villani.commands.paper.settings import PaperSettings
from villani.commands.recommend.record import OptimizerRecord
from villani.commands.recommend.results import Found, assemble
from villani.commands.recommend.run import Certificates, RecommendSettings, pairs_of, rules_of
from villani.commands.recommend.sweep import SweepCell, SweepText, by_decay
from villani.inputs.models import load_model
from villani.objective.parameters import ParameterSpace
from villani.theory.constants import Smoothing
from villani.work.progress import Progress
from villani.work.records import Provenance


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
