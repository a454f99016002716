"""E7: a tuned checkpoint against plain torch code, changes in pairs by hand, kills, and what is refused."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import t as student_t

from tests.commands.paper.test_settings import empty_folder, write  # noqa: F401
from tests.commands.paper.test_training import cell
from villani.commands.paper.forgetting import effects, read_other
from villani.commands.paper.needs import looked, tokens, units
from villani.commands.paper.settings import PaperOptions, read_settings
from villani.commands.recommend import cells as training
from villani.commands.recommend.sweep_text import read_sweep_text
from villani.commands.running import execute
from villani.commands.subject import as_groups, load
from villani.dynamics import interrupted
from villani.dynamics.steered import StartDecay
from villani.dynamics.training import learning_rates
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.inputs.text import choose_groups
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.streams import Purpose, stream
from villani.work.work import Work

RATE, STEPS, GRID = 0.01, 4, (0.0, 0.5, 20.0)
STUDY = """
temperature = [1.0]
[sweep]
model = "{model}"
text = "builtin"
tokenizer = "builtin"
block = 16
optimizers = ["adamw", "adamw-start"]
weight_decay = [0.0, 0.5, 20.0]
seeds = 2
steps = 4
batch = 2
train_blocks = 60
held_out_blocks = 16
learning_rate = {{ adamw = 0.01, adamw-start = 0.01 }}
[forgetting]
text = "{other}"
blocks = 6
pathologies = 4
groups = 3
seeds = 1
[pathologies]
blocks = 3
"""


@pytest.fixture(scope="module")
def study(checkpoint, tmp_path_factory):
    """A study of a checkpoint as text, and what it came to."""
    folder = tmp_path_factory.mktemp("tuned")
    words = np.array(["the", "cat", "river", "runs", "quickly", "under", "blue", "skies"])
    drawn = words[np.random.default_rng(0).integers(len(words), size=(20, 40))]
    (folder / "other.txt").write_text("\n\n".join(" ".join(row) for row in drawn))
    text = STUDY.format(model=checkpoint, other=folder / "other.txt")
    (folder / "study.toml").write_text(text)
    trained, real = [], training.train
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "train", lambda *a, **k: trained.append((k["weight_decay"], k["seed"])) or real(*a, **k))
    options = PaperOptions(config=str(folder / "study.toml"), keep_weights=True)
    directory, record = execute(options, folder / "whole")
    patch.undo()
    return text, directory, record, trained


def tuned(model, text, optimizer, decay, seed):
    """Plain torch: Adam's steps under a clip, and before each what the decay takes away."""
    start = [p.detach().clone() for p in model.parameters()]
    stepper = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step, rate in enumerate(learning_rates("warm-up-cosine", RATE, STEPS)):
        rows = stream(seed, Purpose.BATCHES, step).integers(len(text.train.ids), size=2)
        ids, labels = (t[torch.from_numpy(rows)] for t in (text.train.ids, text.train.labels))
        stepper.zero_grad()
        (nats(model, ids, labels).sum() / (labels[:, 1:] != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for p, centre in zip(model.parameters(), start, strict=True):
                p.sub_(rate * decay * (p - centre if optimizer == "adamw-start" else p))
        stepper.param_groups[0]["lr"] = rate
        stepper.step()
    return vector(model)


def vector(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def nats(model, ids, labels=None):
    """(M,) nats of each block; labels that are not predicted are −100."""
    logits, wanted = model(input_ids=ids).logits[:, :-1], (ids if labels is None else labels)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(dim=1)


def looked_at(model, ids):
    """(M,) attention on the first token, mean over heads, layers and queries but the first; of all θ: embeddings."""
    with torch.no_grad():
        seen = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    sinks = torch.stack([a[:, :, 1:, 0].mean(dim=(1, 2)) for a in seen.attentions]).mean(dim=0)
    sizes = torch.stack([h.abs().flatten(1) for h in seen.hidden_states[:-1]])
    ratios = (sizes.amax(dim=2) / sizes.median(dim=2).values).amax(dim=0)
    rows = model.get_input_embeddings().weight.detach().double()
    rows = rows / rows.norm(dim=1, keepdim=True)
    crowded = (rows @ rows.T)[~torch.eye(len(rows), dtype=bool)].square().mean()
    return sinks, ratios, crowded


def paired_by_hand(moved, tokens):
    """Of (K, U) changes of sums over blocks: mean per token and its 95 % interval (delta method)."""
    seeds, blocks = moved.shape
    each = moved.sum(axis=1) / tokens.sum()
    residual = (moved.mean(axis=0) - each.mean() * tokens) / tokens.mean()
    over_seeds, over_blocks = each.var(ddof=1) / seeds, (residual**2).sum() / (blocks - 1) / blocks
    half = sum(student_t.ppf(0.975, n - 1) ** 2 * v for n, v in ((seeds, over_seeds), (blocks, over_blocks))) ** 0.5
    return each.mean(), each.mean() - half, each.mean() + half


def test_changes_are_those_of_plain_code_in_pairs(study, checkpoint):
    text, directory, record, _ = study
    settings = read_settings(Path(write(text)), None)
    work = Work()
    texts, loaded = read_sweep_text(settings.sweep, work), load(settings.sweep, work)
    other = read_other(settings, settings.forgetting, texts, work, loaded)
    assert len(other.blocks.ids) == 6
    assert record.other_text == other.record
    with torch.no_grad():
        before = nats(loaded.model, other.blocks.ids, other.blocks.labels)
    counts = {"forgetting": (other.blocks.labels[:, 1:] != -100).sum(dim=1).numpy(), "held-out loss": np.full(16, 15)}
    assert len({*counts["forgetting"].tolist()}) > 1  # blocks of unequal size
    found = {(e.quantity, e.optimizer, e.weight_decay): e for e in record.effects}
    start, measured = vector(loaded.model), {}
    for optimizer, decay, seed in product(("adamw", "adamw-start"), GRID, (0, 1)):
        expected = tuned(load_model(checkpoint).model, texts, optimizer, decay, seed)
        model = load_model(checkpoint).model
        of_run = f"{optimizer if decay else 'adamw'}-{decay!r}-{seed}.safetensors"
        stored = load_file(directory / "models" / of_run)
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                parameter.copy_(stored[str(index)])
        theta = vector(model)
        # where a gradient is only rounding, Adam's step is a whole one in any direction: hence the median
        assert float((theta - expected).abs().median()) < 1e-3 * float((theta - start).abs().median())
        with torch.no_grad():
            sinks, ratios, crowded = looked_at(model, texts.held_out.ids[:4])
            measured[optimizer, decay, seed] = {
                "held-out loss": nats(model, texts.held_out.ids),
                "forgetting": nats(model, other.blocks.ids, other.blocks.labels) - before,
                "attention on the first token": sinks, "massive activations": ratios, "crowded embeddings": crowded,
                "‖θ − θ₀‖": (theta - start).norm(), "‖θ‖": theta.norm(),
            }  # fmt: skip
        if (decay, seed) == (20.0, 0):
            groups = as_groups(*choose_groups(texts.train, 3, 1, 0))
            traced = measure(Objective(model, groups), 1, 0, trace="hutchinson", shares=0).hessian_trace
            of = found["tr ∇²L", optimizer, decay]
            assert of.value.value == pytest.approx(traced.value, rel=1e-5)
            assert (of.seeds, of.units) == (1, 3)
    for (quantity, optimizer, decay), effect in found.items():
        if quantity == "tr ∇²L":
            continue
        rows, first = (
            np.array([np.atleast_1d(measured[optimizer, d, s][quantity]) for s in (0, 1)], dtype=float)
            for d in (decay, 0.0)
        )
        tokens = counts.get(quantity, np.ones(rows.shape[1]))
        assert effect.value.value == pytest.approx(rows.sum(axis=1).mean() / tokens.sum(), rel=1e-5, abs=1e-6)
        assert (effect.seeds, effect.units) == rows.shape
        if decay == 0:
            assert effect.change is effect.detectable is effect.memory is None
            continue
        assert effect.memory == pytest.approx(1 / (RATE * decay) / STEPS)
        if rows.shape[1] == 1:
            assert effect.change.value == pytest.approx((rows - first).mean(), rel=1e-4, abs=1e-7)
            continue
        value, low, high = paired_by_hand(rows - first, tokens)
        assert effect.change.value == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert effect.change.interval == pytest.approx((low, high), rel=1e-3, abs=2e-5)
    assert found["‖θ − θ₀‖", "adamw-start", 20.0].change.value < found["‖θ − θ₀‖", "adamw", 20.0].change.value


def test_no_decay_is_trained_once_for_both_senses(study):
    _, _, record, trained = study
    assert sorted(trained) == sorted((d, s) for d in (0.0, 0.5, 0.5, 20.0, 20.0) for s in (0, 1))
    zero = [{**e.model_dump(), "optimizer": ""} for e in record.effects if e.weight_decay == 0]
    assert len(zero) == 16
    assert all(pair in zero[:k] + zero[k + 1 :] for k, pair in enumerate(zero))
    assert {p.optimizer for p in record.training} == {"adamw", "adamw-start"}
    looks = {(p.optimizer, p.weight_decay, p.seed): p.activation for p in record.pathologies}
    assert len(looks) == 12
    assert all(looks["adamw-start", 0.0, seed] == looks["adamw", 0.0, seed] for seed in (0, 1))
    assert looks["adamw-start", 20.0, 0] != looks["adamw", 20.0, 0]
    assert [of.optimizer for of in record.choices] == ["adamw"]


def test_one_seed_that_is_left_tells_no_change_and_is_no_best():
    """At λ = 20 one of two seeds diverged: what the other shows is about one run, whatever its blocks say."""
    text = (
        STUDY.format(model="m", other="o")
        .replace('"adamw", "adamw-start"', '"adamw"')
        .replace(", adamw-start = 0.01", "")
    )
    settings = read_settings(Path(write(text)), None)
    noise, ones = np.random.default_rng(0).normal(0, 0.01, (3, 2, 16)), np.ones(16)
    cells = [
        replace(
            cell(decay, seed, 4.0, 4.0, optimizer="adamw", diverged=(decay, seed) == (20.0, 1)),
            sums=3.0 - (decay > 1) + noise[k, seed], counts=ones, documents=np.zeros(16),
            distance_squared=1.0, looked={
                "forgetting": ones + noise[k, seed], "superposition": np.array(0.5), "traces": ones, "traced": ones,
            },
        )
        for k, decay in enumerate(GRID) for seed in (0, 1)
    ]  # fmt: skip
    other = SimpleNamespace(counts=ones, documents=np.zeros(16))
    found = {(e.quantity, e.weight_decay): e for e in effects(settings, cells, other, ones)}
    assert not any(e.change for (name, decay), e in found.items() if decay == 20 and name != "tr ∇²L")
    assert [found["held-out loss", decay].kept for decay in GRID] == [True, True, False]
    assert [found["held-out loss", decay].seeds for decay in GRID] == [2, 2, 1]
    assert not any(e.resolved for e in found.values())
    assert found["held-out loss", 0.5].detectable > 0


def test_a_study_killed_amid_a_run_ends_with_the_same_bytes(study, villani, monkeypatch):
    """Through the command line: killed within decay towards the start, and gone on from the step that was written."""
    text, directory, record, _ = study
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)  # a state after every step
    real, calls, tensors = StartDecay.decay, [], len([*load_model("builtin:tiny?layers=1").model.parameters()])

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 6 * tensors + 1:  # in the third step of the second run
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(StartDecay, "decay", dying)
    words = ["study", "paper", "--config", write(text), "--json", "--run", "stopped"]
    assert villani(*words)[0] == 1
    code, out, err = villani(*words)
    assert code == 0, err
    assert len(calls) == 4 * STEPS * tensors + 1  # no step was done twice
    assert json.loads(out)["tuning_sentence"] == record.tuning_sentence
    assert Path("stopped/records.json").read_bytes() == (directory / "records.json").read_bytes()
    assert not [*Path("stopped").rglob("*.safetensors")]  # of training and of states
    page = Path("stopped/report.html").read_text(encoding="utf-8")
    assert "E7: what decay changed" in page
    assert "AdamW towards its start" in page
    changed = write(text.replace("pathologies = 4", "pathologies = 5"))
    code, _, err = villani("study", "paper", "--config", changed, "--run", "stopped")
    assert code == 2
    assert "was begun with forgetting.pathologies = 4, now 5" in err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("adamw-start = 0.01", "adamw-start = 0.02", "at the same rate"),
        ('["adamw", "adamw-start"]', '["adamw-start"]', "not among the optimizers"),
        ("blocks = 6", "blocks = 1", r"forgetting\.blocks=1"),
        ("groups = 3", "groups = 2", r"forgetting\.groups=2: expected 0, or at least 3"),
        ("pathologies = 4", "pathologies = 1", r"forgetting\.pathologies=1: expected 0, or at least 2"),
        ("[0.0, 0.5, 20.0]", "[0.1, 0.5]", "has to begin with 0"),
        ('text = "{other}"', 'text = "builtin"', "which is trained on or judged by"),
        ('text = "{other}"', 'text = "nowhere.txt"', "no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_told_in_a_line(old, new, words, tmp_path):
    Path("other.txt").write_text("a few words of another kind, " * 40)
    text = STUDY.replace(old, new).format(model="builtin:tiny?layers=1&width=8&context=16", other="other.txt")
    with pytest.raises(InputError, match=words) as error:
        execute(PaperOptions(config=write(text)), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_copy_of_what_is_trained_on_is_no_other_text(tmp_path):
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("one text, word by word, under two names; " * 200)
    text = STUDY.replace('"builtin"\ntokenizer', '"a.txt"\ntokenizer').replace("train_blocks = 60\n", "")
    text = text.format(model="builtin:tiny?layers=1&width=8&context=16", other="b.txt")
    with pytest.raises(InputError, match=r"forgetting\.text='b\.txt': that is a\.txt"):
        execute(PaperOptions(config=write(text)), tmp_path / "run")


def test_the_rules_of_recommend_are_not_about_decay_towards_the_start(villani):
    code, _, err = villani("recommend", "builtin:tiny", "--optimizers", "adamw,adamw-start", "--run", "r")
    assert code == 2
    assert "adamw-start is of villani study paper" in err


def test_the_size_reaches_where_decay_acts_and_fits_three_core_hours(villani):
    """At 5 seconds for a step of 4 × 128 tokens, and a third of that for a loss."""
    code, _, err = villani("study", "paper", "--size", "fine-tuning")
    assert (code, "which checkpoint? give --model FOLDER" in err) == (2, True)
    settings = read_settings(None, "fine-tuning", model="folder")
    sweep, part = settings.sweep, settings.forgetting
    positive = [decay for decay in sweep.weight_decay if decay]
    memories = [1 / (sweep.learning_rate["adamw"] * decay) / sweep.steps for decay in positive]
    assert min(memories) < 0.5
    assert max(positive) / min(positive) >= 1e4
    assert sweep.seeds >= 2
    runs = units(settings)["sweep"]
    assert runs == sweep.seeds * (1 + 2 * len(positive))
    losses = 4 * sweep.held_out_blocks + part.blocks + 2 * part.pathologies
    blocks = runs * (sweep.steps * sweep.batch + losses / 3) + (1 + 2 * len(positive)) * 4 * part.groups
    assert looked(settings) == pytest.approx(
        ((1 + runs) * (part.blocks + 2 * part.pathologies) / 3 + (2 + 2 * len(positive)) * 4 * part.groups)
        * sweep.block
    )  # at the start, and at the end of every run
    assert blocks / 4 * 5 < 3 * 3600
    assert "forgetting" not in tokens(settings, 40, 7000)  # it is part of training
    assert not any("pathologies" in words for words in settings.cuts())
    assert any("epoch" in words for words in settings.cuts())
