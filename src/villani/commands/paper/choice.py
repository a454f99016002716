"""E6: the choice of λ on the study's own sweep, by the mechanism of `villani recommend`."""

from collections.abc import Sequence

from villani.commands.certify.record import CertificatePoint
from villani.commands.paper.points import Study
from villani.commands.recommend.record import OptimizerRecord
from villani.commands.recommend.results import Certificates
from villani.commands.recommend.run import Evidence, judge, pairs_of
from villani.commands.recommend.settings import RecommendSettings
from villani.commands.recommend.sweep import SweepCell
from villani.commands.subject import load, outputs
from villani.objective.parameters import ParameterSpace
from villani.theory.constants import Smoothing


def choose(study: Study, cells: Sequence[SweepCell], certificates: Sequence[CertificatePoint]) -> list[OptimizerRecord]:
    """Every rule of `villani recommend` against the grid, optimiser by optimiser.

    Certificates are those of E4, of which the sweep knows nothing; the guard is that of a short audit at the start of
    training, in a folder of its own.
    """
    sweep = study.settings.sweep
    recommend = RecommendSettings.model_validate(sweep.model_dump())
    model = load(sweep, study.work).model
    bounds = Certificates({p.weight_decay: p.path.value for p in certificates if p.path}, [])
    evidence = Evidence(
        recommend, study.text, ParameterSpace(model, sweep.decay), Smoothing(outputs(model), recommend.alpha), bounds,
        *pairs_of(recommend, None, study.work),
    )  # fmt: skip
    return [judge(evidence, optimizer, cells) for optimizer in sweep.optimizers]
