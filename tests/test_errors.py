"""Bad input by name and value, and which errors mean that memory was refused."""

import math

import numpy as np
import pytest
import torch

from villani.errors import (
    InputError,
    LostProcess,
    check_nonnegative,
    check_positive,
    check_whole,
    first_line,
    is_number,
    out_of_memory,
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-300, "1", None, True, [1.0]])
def test_what_is_no_finite_number_in_range_is_refused_by_name(value):
    for check in (check_positive, check_nonnegative):
        with pytest.raises(InputError, match=r"^temperature=.*expected a finite number") as error:
            check(temperature=value)
        assert "\n" not in str(error.value)


def test_zero_is_where_the_two_differ():
    check_nonnegative(a=0.0, b=np.float32(3), c=2)
    check_positive(a=5e-324, b=np.float64(1e300))
    with pytest.raises(InputError, match="b=0: expected a finite number > 0"):
        check_positive(a=1.0, b=0)


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.0, "groups=1.0: expected a whole number"), (True, "groups=True"), ("3", "groups='3'"), (2, "at least 3"),
     (np.int64(-1), "groups=-1: expected at least 3")],
)  # fmt: skip
def test_whole_numbers(value, words):
    with pytest.raises(InputError, match=words):
        check_whole(3, groups=value)
    check_whole(3, groups=np.int32(3), probes=10**30)


def test_numbers_are_pythons_and_numpys():
    assert all(is_number(x) for x in (1, 1.5, np.float32(1), np.int8(3), math.nan))
    assert not any(is_number(x) for x in (True, "1", None, 1j, torch.tensor(1.0)))


def test_refused_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 62, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 62, dtype=np.uint8)
    assert out_of_memory(torchs.value)
    assert out_of_memory(numpys.value)
    assert out_of_memory(ImportError("failed to map segment from shared object"))
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))


def test_the_first_line_of_an_error():
    assert first_line(ValueError("  one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert isinstance(InputError("x"), ValueError)


def test_a_lost_process_is_no_error_that_handlers_take_for_their_own():
    assert not issubclass(LostProcess, Exception)
    assert "the same command resumes" in str(LostProcess())
