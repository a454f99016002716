"""What a reader of a spectrum sees: the step that is too long, the ends with their bounds, where vectors live."""

import pytest

from tests.commands.synthetic import estimate, made, told
from villani.commands.spectrum.record import (
    DensityRecord,
    EigenvalueRecord,
    SharpnessRecord,
    SpectrumDesign,
    SpectrumRecord,
)

DESIGN = {"operator": "hessian", "matrix": "loss", "groups": 4}


def pair(rank, value, **changes):
    return made(EigenvalueRecord, rank=rank, value=value, bound=0.125, **{"shares": [0.25, 0.75]} | changes)


def spectrum(*pairs, design=None, **changes):
    given = list(pairs) or [pair(1, 8.0), pair(-1, -2.0)]
    design = made(SpectrumDesign, **DESIGN | (design or {}))
    fields = {"eigenvalues": given, "layer_names": ["wte", "0"], "density": None, "sharpness": None, "converged": True}
    return told(made(SpectrumRecord, design=design, **fields | changes))


@pytest.mark.parametrize(
    ("unstable", "words"),
    [
        (True, ["A step of η = 0.5 is too long here", "at least 4.999", "above 2/η = 4"]),
        (False, ["is stable here as far as was seen", "below 2/η = 4"]),
        (None, ["from −2", "to 8"]),
    ],
)
def test_a_step_is_judged_only_where_the_bounds_tell(unstable, words):
    sharp = SharpnessRecord(learning_rate=0.5, threshold=4.0, low=4.9999, high=6.0, unstable=unstable)
    headline = spectrum(sharpness=sharp).headline
    assert all(word in headline for word in words), headline


@pytest.mark.parametrize(
    ("operator", "matrix", "name"),
    [("hessian", "loss", "∇²L"), ("hessian", "objective", "∇²F"), ("gauss-newton", "loss", "the Gauss–Newton matrix"),
     ("gauss-newton", "objective", "the Gauss–Newton matrix + λM")],
)  # fmt: skip
def test_the_matrix_is_called_by_its_name(operator, matrix, name):
    section = spectrum(design={"operator": operator, "matrix": matrix})
    assert f"eigenvalues of {name} at its ends" in section.headline


def test_the_headline_has_the_ends_of_the_table_whatever_its_order():
    """Ranks −1 and −2 are the least and the next: the last row of the table need not be the least."""
    section = spectrum(pair(1, 8.0), pair(-1, -15.66), pair(-2, -11.95))
    assert "from −15.66" in section.headline
    assert "to 8" in section.headline


def test_the_first_vector_lives_in_the_layer_of_its_largest_share():
    section = spectrum(pair(1, 8.0, shares=[0.9, 0.1]), pair(-1, -2.0))
    assert section.findings["Where the first eigenvector lives"].startswith("90 % of it is in")
    assert "wte" in section.findings["Where the first eigenvector lives"]


def test_one_eigenvalue_is_no_range():
    assert "from" not in spectrum(pair(1, 8.0)).headline


def test_residuals_that_stayed_large_are_told():
    words = "Not all residuals came down to the wanted tolerance"
    assert words in spectrum(converged=False).findings["What the bounds say"]
    assert words not in spectrum().findings["What the bounds say"]


def test_a_density_tells_how_many_directions_count():
    density = made(
        DensityRecord, effective_rank=estimate(12.0, 1.0), trace=estimate(30.0, 2.0),
        frobenius_squared=estimate(100.0, 4.0), negative_share=estimate(0.25, 0.05), grid=[-1.0, 0.0, 1.0],
        density=[0.1, 0.8, 0.1], sem=[0.01, 0.02, 0.01],
    )  # fmt: skip
    section = spectrum(density=density)
    text = section.findings["How many directions count"]
    assert "lies between 10 and 14 of" in text
    assert "‖H‖_F = 10" in text
    assert "Below 0 lie between 15" in text
    assert "35" in text
    assert spectrum().findings["How many directions count"] == ""


def test_fresh_groups_tell_of_the_population():
    section = spectrum(pair(1, 8.0, held_out=estimate(5.0, 0.5, 7)), pair(-1, -2.0))
    text = section.findings["Beyond these data"]
    assert "On 7 fresh groups the first vector has uᵀHu = 5.0 ± 0.5" in text
    assert "larger than the population's" in spectrum().findings["Beyond these data"]
