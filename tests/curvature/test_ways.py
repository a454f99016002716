import itertools
import subprocess
import sys
from typing import get_args

import pytest

from villani.commands.measure.record import DesignRecord
from villani.commands.measure.settings import MeasureSettings
from villani.curvature.trace import SAMPLERS
from villani.curvature.ways import Blocks, ProductMethod, TraceMethod, Way
from villani.errors import InputError

LISTS = {"trace": TraceMethod, "blocks": Blocks, "products": ProductMethod}


def test_every_way_that_has_a_name_has_a_sampler():
    assert set(SAMPLERS) == set(get_args(TraceMethod))


@pytest.mark.parametrize("name", LISTS)
def test_settings_and_records_know_the_ways_that_there_are(name):
    names = get_args(LISTS[name])
    assert {*names} <= {*get_args(MeasureSettings.model_fields[name].annotation)}
    assert get_args(DesignRecord.model_fields[name].annotation) == names


def test_only_choices_that_go_together_make_a_way():
    allowed = [way for way in itertools.product(*map(get_args, LISTS.values()), (False, True)) if made(*way)]
    first = "reverse-over-reverse"
    assert sorted(allowed) == sorted(
        [("gauss-newton", "whole", first, False), ("hutchinson", "whole", first, True)]
        + [("hutchinson", "whole", products, False) for products in get_args(ProductMethod)]
        + [("taylor", blocks, first, False) for blocks in get_args(Blocks)]
        + [("adjoint", "whole", first, False)]
    )


def made(trace, blocks, products, deflated):
    try:
        Way(trace, blocks, products, deflated)
    except InputError as error:
        if "goes with" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("name", LISTS)
def test_unknown_names_are_refused_with_those_that_there_are(name):
    with pytest.raises(InputError, match=f"{name}='nope': expected {', '.join(get_args(LISTS[name]))}"):
        Way(**{name: "nope"})


def test_designs_are_checked_without_torch():
    program = (
        "import sys; from villani.curvature.ways import Way; from villani.measurement.design import Design;"
        "Design(3, way=Way('taylor')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ways_that_differentiate_a_gradient_hold_more():
    assert Way("hutchinson").graphs == Way("hutchinson", products="forward-over-reverse").graphs == 3
    assert Way("gauss-newton").graphs == 3
    assert {Way(name).graphs for name in ("taylor", "adjoint")} == {1.0}
    assert Way("hutchinson", products="finite-differences").graphs == 1
