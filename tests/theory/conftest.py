"""Truths of the catalogue, solved once."""

from functools import cache

import pytest

from villani.theory.catalogue import named
from villani.theory.exact import solve


@pytest.fixture(scope="session")
def truths():
    """Name ↦ the truth at the defaults of the catalogue, without C_LS."""
    return cache(lambda name: solve(named(name).potential, sobolev=False))
