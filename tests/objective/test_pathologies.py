"""Pathologies against brute force, against closed forms, and their intervals' coverage."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import make_model
from villani.errors import InputError
from villani.objective.pathologies import measure_pathologies, superposition


def blocks(count=5, length=6, seed=0):
    ids = torch.randint(0, 11, (count, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    ids[1, 3:], labels[1, 3:] = 0, -100  # a padded tail
    return ids, labels


def test_superposition_is_the_mean_of_all_squared_cosines():
    rows = torch.randn(23, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(23, dtype=bool)]
    assert superposition(rows) == pytest.approx(float(cosines.square().mean()), rel=1e-12)
    assert superposition(3 * rows) == pytest.approx(superposition(rows), rel=1e-12)  # lengths do not matter


def test_superposition_of_known_rows():
    assert superposition(torch.eye(5)) == pytest.approx(0, abs=1e-12)
    assert superposition(torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.ones(4))) == pytest.approx(1)
    with_zero = torch.cat([torch.eye(5), torch.zeros(3, 5)])
    assert superposition(with_zero) == pytest.approx(0, abs=1e-12)
    many = torch.randn(4000, 20, generator=torch.Generator().manual_seed(2))
    # pairs share rows, but squared cosines of directions that are drawn alike are uncorrelated between pairs
    spread = np.sqrt(2 * (20 - 1) / (20**2 * (20 + 2)) / (4000 * 3999 / 2))
    assert abs(superposition(many) - 1 / 20) < 4 * spread


def test_superposition_in_pieces_is_that_of_the_whole(monkeypatch):
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    whole = superposition(rows)
    monkeypatch.setattr("villani.objective.pathologies.ROWS", 7)
    assert superposition(rows) == pytest.approx(whole, rel=1e-12)


def test_superposition_refuses_a_single_direction():
    with pytest.raises(InputError, match="1 rows"):
        superposition(torch.cat([torch.ones(1, 4), torch.zeros(3, 4)]))


@pytest.mark.parametrize("architecture", ["gpt_neo", "gpt2", "llama"])
def test_sinks_and_activations_are_those_of_one_block_at_a_time(architecture):
    model = make_model(architecture)
    ids, labels = blocks()
    found = measure_pathologies(model, ids, labels, micro_tokens=13)  # two blocks in a piece
    assert model.training
    model.eval()
    masses, queries, ratios = [], 0, []
    for b in range(len(ids)):
        n = int((labels[b] >= 0).sum())
        with torch.no_grad():  # without its padding, which nothing real looks at
            out = model(ids[b : b + 1, :n], output_attentions=True, output_hidden_states=True, use_cache=False)
        masses.append([float(a[0, :, 1:, 0].mean(dim=0).sum()) for a in out.attentions])
        queries += n - 1
        sizes = [h[0].abs() for h in out.hidden_states[:-1]]
        ratios.append([float(h.max() / h.median()) for h in sizes])
    sums = np.array(masses).sum(axis=0)
    # the estimates are bias-corrected ratios: blocks of unequal length move them from the plain ones by a little
    assert [e.value for e in found.sinks] == pytest.approx(sums / queries, abs=0.02)
    assert found.sink.value == pytest.approx(np.mean([e.value for e in found.sinks]), rel=1e-9)
    assert [e.value for e in found.activations] == pytest.approx(np.mean(ratios, axis=0), rel=1e-6)
    assert found.activation.value == pytest.approx(np.max(ratios, axis=1).mean(), rel=1e-6)
    assert found.activation.sem == pytest.approx(np.std(np.max(ratios, axis=1), ddof=1) / np.sqrt(5), rel=1e-6)
    assert 0 < found.sink.sem < 0.5
    assert not found.note


def test_uniform_attention_gives_its_closed_form():
    model = make_model("gpt2")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "c_attn" in name:
                p.zero_()  # every query and key is 0: attention is even over what a query sees
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    found = measure_pathologies(model, ids, ids)
    expected = np.mean([1 / (t + 1) for t in range(1, 6)])
    assert found.uniform == pytest.approx(expected)
    assert found.sink.value == pytest.approx(expected, rel=1e-6)
    assert found.sink.sem == pytest.approx(0, abs=1e-9)


def test_a_planted_activation_is_found():
    model = make_model("gpt2", scale=0.0)
    with torch.no_grad():
        model.transformer.wpe.weight[:, 3] += 1e4
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    found = measure_pathologies(model, ids, ids)
    assert found.activation.value > 1e5  # weights are of the size of 0.02


def test_intervals_over_blocks_cover_the_mean_of_many():
    model = make_model("gpt2")
    ids = torch.randint(0, 11, (4000, 6), generator=torch.Generator().manual_seed(5))
    truth = measure_pathologies(model, ids, ids, micro_tokens=24_000)
    covered = {"sink": 0, "activation": 0}
    for part in range(250):
        some = ids[16 * part : 16 * part + 16]
        found = measure_pathologies(model, some, some)
        for name in covered:
            low, high = getattr(found, name).interval()
            covered[name] += low <= getattr(truth, name).value <= high
    # ratios are skewed to the right, which costs a little: 4 sigma of 250 draws below 0.93
    floor = 250 * 0.93 - 4 * np.sqrt(250 * 0.93 * 0.07)
    assert min(covered.values()) > floor


def test_fused_attention_is_said_to_be_unseen():
    model = make_model("gpt2")
    model.set_attn_implementation("sdpa")
    ids, labels = blocks()
    found = measure_pathologies(model, ids, labels)
    assert found.sink is None
    assert found.sinks == ()
    assert "eager" in found.note
    assert found.activation.value > 1


def test_bad_input_is_told_in_a_line():
    ids, labels = blocks()
    with pytest.raises(InputError, match="1 blocks with two tokens"):
        measure_pathologies(make_model("gpt2"), ids[:1], labels[:1])

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, input_ids):
            return self.w[input_ids]

    with pytest.raises(InputError, match="Plain shows no hidden states"):
        measure_pathologies(Plain(), ids, labels)
