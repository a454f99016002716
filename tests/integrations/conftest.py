"""What every test of a Trainer shares."""

from types import SimpleNamespace

import pytest
from accelerate.utils import memory


@pytest.fixture(autouse=True)
def nothing_collected(monkeypatch):
    """A Trainer collects garbage when it begins: a tenth of a second where everything that tests hold is walked."""
    monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: 0))
