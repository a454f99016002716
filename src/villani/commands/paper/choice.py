"""E6: the choice of λ on the study's own sweep, by the mechanism of `villani recommend`."""

from collections.abc import Sequence

from villani.commands.certify.record import CertificatePoint
from villani.commands.paper.points import Study
from villani.commands.recommend.record import OptimizerRecord
from villani.commands.recommend.results import Certificates, OptimizerResult, assemble
from villani.commands.recommend.run import pairs_of, rules_of, training_of
from villani.commands.recommend.settings import RecommendSettings
from villani.commands.recommend.sweep import SweepCell, by_decay
from villani.commands.subject import load, outputs
from villani.objective.parameters import ParameterSpace
from villani.theory.constants import Smoothing
from villani.work.records import Provenance


def choose(
    study: Study, cells: Sequence[SweepCell], certificates: Sequence[CertificatePoint], provenance: Provenance
) -> list[OptimizerRecord]:
    """Every rule of `villani recommend` against the grid, optimiser by optimiser.

    Certificates are those of E4, of which the sweep knows nothing; the guard is that of a short audit at the start of
    training, in a folder of its own.
    """
    sweep, text = study.settings.sweep, study.text
    recommend = RecommendSettings.model_validate(sweep.model_dump())
    loaded = load(sweep, study.work)
    space = ParameterSpace(loaded.model, sweep.decay)
    smoothing = Smoothing(outputs(loaded.model), recommend.alpha)
    bounds = Certificates({p.weight_decay: p.path.value for p in certificates if p.path}, [])
    pairs, source = pairs_of(recommend, None, study.work)
    results = []
    for optimizer in sweep.optimizers:
        run = training_of(recommend, optimizer, len(text.train.ids), space)
        rules = rules_of(recommend, run, smoothing, bounds, pairs, source)
        results.append(OptimizerResult(run, by_decay(cells, optimizer), {}, rules, bounds))
    return assemble(recommend, loaded.record, text, space, smoothing, results, provenance).optimizers
