"""Gradients of groups on disk: read side by side, computed twice where they are not kept, gone on with after a kill."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_model, make_pool
from villani.criteria import part_gradients
from villani.criteria.part_gradients import BUCKETS, KeptGradients, batch_gradients, gradient_units, kept_bytes
from villani.criteria.partition import parts_of, sketch_into
from villani.criteria.parts import part_statistics
from villani.errors import InputError
from villani.objective.objective import Objective
from villani.work.work import Work

GROUPS = (0, 1, 3)


def split(objective):
    """Parts of which some are halves of a tensor, by its rows and by its columns."""
    space = objective.parameters
    matrix = next(i for i, p in enumerate(space.parameters) if p.tensor.dim() == 2 and ".0." in p.name)
    rows, columns = space.tensors[matrix].shape
    halves = [torch.arange(rows)[:, None] % 2 + 1.0, (torch.arange(columns) % 2 + 1.0)]
    return parts_of(space, [{matrix: halves[0]}, {matrix: halves[1]}])


def dense_rows(objective, parts):
    """The same from whole gradients in float64, by plain torch."""
    space = objective.parameters
    labels = torch.cat([label.expand(t.shape).flatten() for label, t in zip(parts.labels, space.tensors, strict=True)])
    theta = torch.cat([t.detach().flatten() for t in space.tensors]).double()
    gradients = []
    for group in GROUPS:
        batch = objective.groups[group]
        logits = objective.model.eval()(input_ids=batch.ids, attention_mask=batch.attention).logits[:, :-1]
        wanted = batch.labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum", ignore_index=-100)
        pieces = torch.autograd.grad(loss, space.tensors)
        gradients.append(torch.cat([piece.flatten() for piece in pieces]).double())
    h = torch.stack(gradients)
    total = h.sum(dim=0)

    def by_part(x):
        return np.stack([x[..., labels == k].sum(dim=-1).numpy() for k in range(parts.count)], axis=-1)

    return {
        "dots": by_part(h * theta), "squares": by_part(h**2), "products": by_part(h * total),
        "totals": by_part(total**2),
    }  # fmt: skip


@pytest.mark.parametrize("most", [part_gradients.MOST, 0], ids=["kept", "computed twice"])
@pytest.mark.parametrize("at_once", [1 << 24, 100], ids=["whole tensors", "pieces"])
def test_they_say_what_whole_gradients_say(monkeypatch, most, at_once):
    monkeypatch.setattr(part_gradients, "MOST", most)
    monkeypatch.setattr(part_gradients, "AT_ONCE", at_once)
    objective = Objective(make_model("gpt2"), make_pool(4), decay="all")
    parts = split(objective)
    assert parts.count > len(objective.parameters.parameters)
    assert (kept_bytes(objective, 3) > 0) == (most > 0)
    units = gradient_units(objective, parts, GROUPS, Work())
    assert [*units] == [*(f"gradient/{group}" for group in GROUPS if most), "gradients"]
    found = [unit() for unit in units.values()][-1]
    for name, rows in dense_rows(objective, parts).items():
        assert found[name] == pytest.approx(rows, rel=1e-9, abs=1e-12), name
    sketches = torch.zeros(3, parts.count * BUCKETS, dtype=torch.float64)
    for sketch, group in zip(sketches, GROUPS, strict=True):
        for index, g in enumerate(batch_gradients(objective, group)[0]):
            sketch_into(sketch, parts, index, g, BUCKETS)
    s = sketches.view(3, parts.count, BUCKETS).numpy()
    assert found["gram"] == pytest.approx(np.einsum("gak,hak->gha", s, s), rel=1e-9, abs=1e-12)


def test_a_killed_run_goes_on_from_its_files(tmp_path, monkeypatch):
    """The gradients that it has are not computed again, a file that is gone is, and the bits are the same."""
    objective = Objective(make_model("gpt2"), make_pool(4))
    parts = split(objective)
    expected = part_statistics(objective, parts, GROUPS)
    computed = []

    def counted(objective, group, *rest):
        if len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(group)
        return batch_gradients(objective, group, *rest)

    monkeypatch.setattr(part_gradients, "batch_gradients", counted)

    def measured():
        with Work(tmp_path / "run") as work:
            work.open("audit", "x", {"seed": 0}, {})
            return part_statistics(objective, parts, GROUPS, work=work.scope("screening"))

    with pytest.raises(KeyboardInterrupt):
        measured()
    files = sorted((tmp_path / "run" / "scratch" / "screening" / "gradients").iterdir())
    assert [file.name for file in files] == ["0.gradient", "1.gradient"]
    files[1].unlink()
    computed.clear()
    found = measured()
    assert computed == [3, 1]
    for name in ("losses", "dots", "squares", "products", "totals", "gram", "traces", "rounding"):
        assert np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=True), name
    assert not (tmp_path / "run" / "scratch").exists()


def test_a_gradient_of_some_tensors_is_that_part_of_the_whole():
    """In several batches, as in one."""
    objective = Objective(make_model("llama"), make_pool(2, blocks=3), micro_tokens=6)
    whole, tokens, loss = batch_gradients(objective, 1)
    some, same, again = batch_gradients(objective, 1, [2, 5])
    assert (tokens, loss) == (same, again)
    assert all(torch.equal(a, whole[i]) for a, i in zip(some, (2, 5), strict=True))
    expected = objective.gradient_sum([1])[0]
    assert all(torch.allclose(a.double(), b, rtol=1e-12, atol=1e-14) for a, b in zip(whole, expected, strict=True))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    objective = Objective(make_model("gpt2"), make_pool(1))
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(InputError, match=r"cannot write to .*gradients"):
        KeptGradients(objective, tmp_path / "gradients").make(0)
