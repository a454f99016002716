"""Plain content of results: the bits come back, and every law of intervals is data."""

import json
import math
from dataclasses import fields
from importlib import import_module

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import villani
from villani.choice.paired import paired
from villani.results import LIMITS, plain, restored
from villani.statistics import JointEstimate, Limits

ANY = arrays.arrays(np.float64, arrays.array_shapes(max_dims=2, min_side=0), elements=st.floats(width=64))


@given(ANY, ANY, st.floats(), st.integers(1, 5))
def test_arrays_and_numbers_come_back_bit_by_bit(values, covariance, freedom, n):
    joint = JointEstimate(values, covariance, n, freedom, values[:0])
    again = restored(JointEstimate, json.loads(json.dumps(plain(joint), allow_nan=False)))
    assert again == joint
    for field in fields(joint):
        one, other = np.asarray(getattr(joint, field.name)), np.asarray(getattr(again, field.name))
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes() or math.isnan(freedom)


def test_every_law_of_intervals_is_data(tmp_path):
    for name, module in LIMITS.items():
        assert issubclass(getattr(import_module(module), name), Limits)
    one = paired(np.random.default_rng(0).normal(size=(3, 8)), np.full(8, 4.0))
    one.save(tmp_path / "e.json")
    assert villani.load(tmp_path / "e.json").interval(0.9) == one.interval(0.9)
