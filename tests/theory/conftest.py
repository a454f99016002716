"""Truths, solved once each for all tests."""

from functools import cache

import pytest

from villani.theory import reference
from villani.theory.catalogue import named
from villani.theory.exact import solve


@pytest.fixture(scope="session")
def solved():
    """`solve` with a memory: equal potentials have equal truths."""
    return cache(solve)


@pytest.fixture(scope="session")
def truths(solved):
    """Name ↦ the truth at the defaults of the catalogue, without C_LS."""
    return lambda name: solved(named(name).potential, sobolev=False)


@pytest.fixture(scope="session")
def found(solved):
    """All reference values, recomputed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "solve", solved)
        return list(reference.checks())
