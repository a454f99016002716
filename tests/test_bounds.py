"""Numbers that no command can use are refused in one line, whichever settings they stand in."""

import math
import typing

import pytest

from villani.bounds import check_bounds, check_number
from villani.commands.audit.settings import AuditSettings
from villani.commands.certify.run import CertifySettings
from villani.commands.constants.run import ConstantsSettings
from villani.commands.converge.run import ConvergeSettings
from villani.commands.exact.run import ExactSettings
from villani.commands.measure.run import MeasureSettings
from villani.commands.paper.settings import read_settings
from villani.commands.recommend.settings import RATES, RecommendSettings
from villani.commands.spectrum.run import SpectrumSettings
from villani.errors import InputError

SETTINGS = [
    *(
        kind(model="m")
        for kind in (MeasureSettings, AuditSettings, SpectrumSettings, ConvergeSettings, CertifySettings)
    ),
    RecommendSettings(model="m", learning_rate=dict(RATES), temperature=1e-6),
    ConstantsSettings(model="m"),
    ExactSettings(potential="p"),
]
FIELDS = [(one, name) for one in SETTINGS for name in type(one).model_fields]


def kinds_of(annotation):
    """The plain types in an annotation."""
    inner = typing.get_args(annotation)
    return {annotation} if not inner else set().union(*(kinds_of(one) for one in inner))


@pytest.mark.parametrize(("settings", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_every_number_of_every_command_is_bounded(settings, name):
    annotation = type(settings).model_fields[name].annotation
    kinds = kinds_of(annotation)
    values = []
    if int in kinds:
        values += [10**30, 2**64, 10**5000, -(10**30)]
    if float in kinds:
        values += [math.nan, math.inf, -math.inf]
        values += [] if name == "parameters" else [1e308, -1e308, 1e-320, 5e-324]
    for value in values:
        shaped = {"a": value} if dict in {typing.get_origin(annotation), annotation} else value
        shaped = [value] if typing.get_origin(annotation) is list else shaped
        with pytest.raises(InputError, match=f"^{name}") as caught:
            check_bounds(settings.model_copy(update={name: shaped}))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 120


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: type(x).__name__)
def test_defaults_are_within_bounds(settings):
    check_bounds(settings)


def test_a_study_names_the_part_and_those_that_come_with_villani_are_within_bounds():
    study = read_settings(None, "tiny")
    with pytest.raises(InputError, match=r"sweep\.steps=about 10\^30"):
        check_bounds(study.model_copy(update={"sweep": study.sweep.model_copy(update={"steps": 10**30})}))
    with pytest.raises(InputError, match=r"certificates\.temperature=inf"):
        check_bounds(
            study.model_copy(update={"certificates": study.certificates.model_copy(update={"temperature": math.inf})})
        )
    for size in ("tiny", "small", "125m"):
        check_bounds(read_settings(None, size))


def test_a_seed_is_a_63_bit_integer():
    check_number("seed", 2**63 - 1)
    with pytest.raises(InputError, match="seed=about"):
        check_number("seed", 2**63)
