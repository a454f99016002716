"""Here every graph is traced anew: tracing is what is tested."""

import pytest

from tests.conftest import SHARING


@pytest.fixture(autouse=True)
def traces_of_this_test(monkeypatch):
    """None are shared."""
    SHARING.refuse(monkeypatch)
    yield
    SHARING.end()
