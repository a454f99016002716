"""E6: which λ each rule names, at what price."""

from collections.abc import Sequence

from villani.runs.papers import LandscapePoint
from villani.studies.paper_settings import PaperSettings
from villani.studies.paper_training import Rule
from villani.studies.sweep import SweepCell, SweepText

CONSTANTS = (0.0, 0.01, 0.1)


def rules(
    settings: PaperSettings, cells: Sequence[SweepCell], text: SweepText, landscape: Sequence[LandscapePoint]
) -> list[Rule]:
    """Every rule for every optimiser of the sweep."""
    found = [
        Rule(f"constant {value:g}", optimizer, value, 1, "in use, without a reason")
        for value in CONSTANTS
        for optimizer in settings.sweep.optimizers
    ]
    return found
