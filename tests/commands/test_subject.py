"""A model and a text for a command: loaded once, copied before training, and told of by their bits."""

import itertools

import pytest
import torch

from villani.commands import subject
from villani.commands.spectrum.settings import SpectrumSettings
from villani.commands.subject import as_groups, load, load_blocks, load_subject, objective_record, outputs, vocabulary
from villani.errors import InputError
from villani.work.work import Work

SETTINGS = SpectrumSettings(
    model="builtin:tiny?layers=1&width=8&context=16", block=16, groups=3, sequences=2, decay="nanogpt"
)


def test_model_and_text_are_loaded_once_for_all_parts_of_a_command(monkeypatch):
    loads, reads = [], []
    real_load, real_read = subject.load_model, subject.load_corpus
    monkeypatch.setattr(subject, "load_model", lambda *a, **k: loads.append(a) or real_load(*a, **k))
    monkeypatch.setattr(subject, "load_corpus", lambda *a, **k: reads.append(a) or real_read(*a, **k))
    work = Work()
    first, second = (load_subject(SETTINGS, work, decay) for decay in (0.1, 0.2))
    assert (len(loads), len(reads)) == (1, 1)
    assert first.loaded is second.loaded
    assert (first.objective.weight_decay, second.objective.weight_decay) == (0.1, 0.2)
    assert first.text == second.text
    assert first.text.token_checksum == second.text.token_checksum
    assert first.provenance.parameter_checksum == first.objective.parameters.checksum()
    assert [g.ids.shape for g in first.objective.groups] == [(2, 16)] * 3
    blocks, owners = load_blocks("builtin", SETTINGS, work, first.loaded)
    assert len(owners) == len(blocks.ids)
    assert len(reads) == 1


def test_who_trains_gets_a_copy_back():
    work = Work()
    loaded = load(SETTINGS, work, train=True)
    before = [p.detach().clone() for p in loaded.model.parameters()]
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.add_(1)
    again = load(SETTINGS, work)
    assert again is loaded
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), before, strict=True))
    assert not again.model.training


def test_the_mask_as_it_stands_in_a_record():
    given = load_subject(SETTINGS, Work(), 0.3).objective
    record = objective_record(given)
    left = [p for p in given.parameters.parameters if not p.decayed]
    assert record.decayed_parameters + sum(g.parameters for g in record.undecayed) == record.parameters
    assert [g.name for g in record.undecayed] == [p.name for p in left]
    assert (record.weight_decay, record.decay) == (0.3, "nanogpt")


def test_needs_count_vectors_of_the_size_of_theta_and_records_have_its_facts():
    given = load_subject(SETTINGS, Work(), 0.3)
    one, two = (given.needs(SETTINGS, {"ends": 1e3}, vectors=v, kept=k) for v, k in ((2, 0), (3, 4)))
    theta = 4 * sum(p.numel() for p in given.loaded.model.parameters())  # bytes
    assert two.memory - one.memory == pytest.approx(theta)
    assert two.disk - one.disk == pytest.approx(4 * theta)
    assert [*one.stages] == ["ends"]
    assert given.facts == {
        "model": given.loaded.record, "text": given.text, "provenance": given.provenance,
        "objective": objective_record(given.objective),
    }  # fmt: skip


def test_sizes_of_the_vocabulary():
    model = load(SETTINGS, Work()).model
    assert vocabulary(model) == outputs(model) == model.get_input_embeddings().weight.shape[0]
    groups = as_groups(torch.zeros(3, 2, 4, dtype=torch.int64), torch.ones(3, 2, 4, dtype=torch.int64))
    assert [tuple(g["labels"].shape) for g in groups] == [(2, 4)] * 3


@pytest.mark.parametrize(
    ("changes", "words"), [({"decay": "some"}, "some"), ({"device": "nowhere"}, "nowhere"), ({"block": 64}, "64")]
)
def test_what_no_model_could_make_right_is_refused(changes, words):
    with pytest.raises(InputError, match=words) as error:
        load_subject(SETTINGS.model_copy(update=changes), Work(), 0.1)
    assert "\n" not in str(error.value)


def test_the_time_of_a_forward_pass_is_not_that_of_the_first(monkeypatch):
    objective = load_subject(SETTINGS, Work(), 0.1).objective
    clock, passes = [0.0], iter([9.0, *[0.01] * 20])
    monkeypatch.setattr(subject.time, "perf_counter", lambda: clock[0])
    real = objective.forward

    def forward(row):
        clock[0] += next(passes) if slow else 0.02
        return real(row)

    monkeypatch.setattr(objective, "forward", forward)
    slow = False
    assert subject.timed_forward(objective) == (16, pytest.approx(0.02))
    slow = True  # one pass of a large model says enough
    assert subject.timed_forward(objective)[1] == pytest.approx(9.0)


def test_a_forward_pass_is_timed_even_where_the_process_was_paused(monkeypatch):
    objective, ticks = load_subject(SETTINGS, Work(), 0.1).objective, itertools.count()
    monkeypatch.setattr(subject.time, "perf_counter", lambda: 1000.0 * next(ticks))
    assert subject.timed_forward(objective) == (16, 1000.0)
