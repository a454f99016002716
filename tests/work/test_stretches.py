"""Tensors in files, and work that goes on from them wherever it was stopped."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from villani.errors import InputError
from villani.work import stretches as stretching
from villani.work.stretches import read_state, stretches, write_state
from villani.work.work import Work


def test_states_come_back_bit_for_bit(tmp_path):
    tensors = [torch.randn(3, 5), torch.randn(7, dtype=torch.float64), torch.zeros(0)]
    write_state(tmp_path / "s" / "x.safetensors", tensors)
    back = [torch.empty_like(t) for t in tensors]
    read_state(tmp_path / "s" / "x.safetensors", back)
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["x.safetensors"]
    stored = load_file(tmp_path / "s" / "x.safetensors")
    assert all(torch.equal(stored[str(i)], t) for i, t in enumerate(tensors))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("diverges", [-1, 4])
def test_work_that_is_stopped_goes_on_from_its_last_state(tmp_path, monkeypatch, stop, diverges):
    """x ← 3x + step from 1, whatever the cuts; a fresh tensor each time, as after a kill."""
    monkeypatch.setattr(stretching, "PATIENCE", -1.0)  # a unit a step
    work, calls = Work(), []

    def run():
        x = torch.ones(1, dtype=torch.float64)

        def advance(start, before, enough):
            assert (before is None) == (start == 0)
            calls.append(start)
            if len(calls) == stop:
                raise Stopped
            for step in range(start, 6):
                x.mul_(3).add_(step)
                if step + 1 == diverges:
                    return {"stop": np.array(step + 1), "state": np.zeros(0, np.uint8), "diverged": np.array(step)}
                if enough(step + 1):
                    break
            return {"stop": np.array(step + 1), "state": np.zeros(0, np.uint8), "diverged": np.array(-1)}

        return stretches(work, tmp_path / "states" / "x", 6, [x], advance), x

    try:
        rows, x = run()
    except Stopped:
        rows, x = run()
    expected = 1
    for step in range(diverges if diverges > 0 else 6):
        expected = 3 * expected + step
    assert len(rows) == (diverges if diverges > 0 else 6)
    if not calls or calls[-1] == len(rows) - 1:
        assert float(x) == expected
    assert not list((tmp_path / "states").iterdir())


def test_a_state_that_was_changed_is_refused(tmp_path):
    write_state(tmp_path / "x.safetensors", [torch.ones(2)])
    with pytest.raises(InputError, match="not the file that the run left"):
        read_state(tmp_path / "x.safetensors", [torch.ones(2)], np.zeros(32, np.uint8))
    with pytest.raises(InputError, match="expected \\(3,\\)"):
        read_state(tmp_path / "x.safetensors", [torch.ones(3)])
