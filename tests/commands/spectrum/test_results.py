"""From eigenvalues in Python to the record of the command."""

import pytest

from tests.conftest import make_model, make_pool
from villani.commands.spectrum.results import density_record, record, rows
from villani.measurement.spectrum import spectrum
from villani.objective.objective import Objective


def test_ranks_values_and_shares_are_those_of_the_result():
    result = spectrum(Objective(make_model("gpt2"), make_pool(3)), top=3, bottom=2, density_probes=2, density_steps=6)
    made = record(result, result.origin)
    pairs = [*result.eigenpairs.largest, *result.eigenpairs.smallest]
    assert [one.rank for one in made.eigenvalues] == [1, 2, 3, -1, -2]
    assert [one.value for one in made.eigenvalues] == [pair.value for pair in pairs]
    for one, pair in zip(made.eigenvalues, pairs, strict=True):
        vector, squares, start = pair.vector.double(), dict.fromkeys(made.layer_names, 0.0), 0
        for tensor in result.origin.tensors:
            layer = next((name for name in squares if f".h.{name}." in tensor.name), tensor.name)
            squares[layer] += float(vector[start : start + tensor.parameters].square().sum())
            start += tensor.parameters
        assert one.shares == pytest.approx(list(squares.values()), abs=1e-6)
    assert made.density == density_record(result.density, 6)
    assert made.density.trace.value == result.density.trace.value
    assert [row["value"] for row in rows(made)] == [pair.value for pair in pairs]
    assert record(result.eigenpairs, result.origin).density is None
