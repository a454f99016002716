"""Settings of a study: files and sizes, and what is wrong with one told in a line."""

import hashlib
from pathlib import Path

import pytest

from villani.commands.paper import needs
from villani.commands.paper.settings import read_settings
from villani.errors import InputError

QUICK = """
temperature = [1e-3, 1.0]
[sweep]
model = "builtin:tiny?layers=1&width=8&context=16"
text = "builtin"
block = 16
optimizers = ["sgd"]
weight_decay = [0.0, 0.1]
seeds = 2
steps = 4
batch = 2
evaluate_every = 2
train_blocks = 60
held_out_blocks = 8
learning_rate = { sgd = 0.3 }
"""
PARTS = """
[spectra]
groups = 1
sequences = 1
top = 1
bottom = 1
most = 12
density_probes = 2
density_steps = 4
[convergence]
steps = 10
chains = 3
groups = 2
sequences = 1
log_every = 1
[certificates]
weight_decay = [0.01, 0.1]
steps = 3
batch = 2
blocks = 30
[estimators]
groups = 1
sequences = 1
repeats = 2
ways = ["hutchinson"]
reference_probes = 3
exact = 0
[pathologies]
blocks = 3
"""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text):
    Path("study.toml").write_text(text)
    return "study.toml"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (QUICK.replace("batch", "bach"), ["unknown key 'sweep.bach'", "batch"]),
        (QUICK + "[landscapes]\n", ["unknown key 'landscapes'", "landscape"]),
        (QUICK + "[landscape]\nray_group = 3\n", ["unknown key 'landscape.ray_group'", "ray_groups"]),
        (QUICK.replace('text = "builtin"', 'text = "missing.txt"'), ["missing.txt", "no such file"]),
        (QUICK.replace("[0.0, 0.1]", "[0.1]"), ["weight_decay", "at least 2"]),
        (QUICK.replace("[0.0, 0.1]", "[0.0, -0.1]"), ["-0.1"]),
        (QUICK.replace("seeds = 2", "seeds = 1"), ["sweep.seeds=1", "at least 2"]),
        (QUICK.replace("steps = 4", 'steps = "many"'), ["sweep.steps", "'many'"]),
        (QUICK.replace("temperature = [1e-3, 1.0]", ""), ["temperature is missing"]),
        (QUICK.replace("1e-3", "-1e-3"), ["temperature=-0.001"]),
        (QUICK + "[landscape]\nradii = [0, 1, 2]\n", ["landscape.radii=[0.0, 1.0, 2.0]", "at least 3"]),
        (QUICK + "[landscape]\nseeds = 0\n", ["landscape.seeds=0"]),
        (QUICK + "[pathologies]\nblocks = 1\n", ["pathologies.blocks=1"]),
        ("temperature = [", ["not a TOML file"]),
        (
            QUICK.replace("batch", "bach").replace("1e-3", '"much"') + "[pathologies]\nblocks = 1\n",
            ["unknown key 'sweep.bach'", "sweep.batch is missing", "'much'", "pathologies.blocks=1"],
        ),
        (
            QUICK + "".join(f"[part{k}]\n" for k in range(9)),
            ["unknown key 'part0'", "unknown key 'part4'", "; and 4 more"],
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_told_in_a_line(villani, text, words):
    code, out, err = villani("study", "paper", "--config", write(text), "--run", "r")
    assert (code, out) == (2, "")
    line = [row for row in err.splitlines() if row.startswith("villani:")]
    assert len(line) == 1
    assert all(word in line[0] for word in words), line
    assert "Traceback" not in err


def test_a_study_is_a_file_or_a_size(villani):
    assert villani("study", "paper")[0] == 2
    assert "either --config" in villani("study", "paper", "--config", "x", "--size", "tiny")[2]
    assert "no such file" in villani("study", "paper", "--config", "x")[2]
    assert villani("study", "paper", "--size", "huge")[0] == 2


@pytest.mark.parametrize("size", ["tiny", "small", "125m", "overfit", "long"])
def test_sizes_can_be_read_and_cover_what_they_should(size):
    settings = read_settings(None, size, text="wikitext", model="config:gpt-neo-125m")
    assert (settings.sweep.text, settings.sweep.held_out) == ("wikitext-103", "wikitext-103:test")
    assert settings.sweep.model == "config:gpt-neo-125m"
    if size not in ("tiny", "125m"):
        positive = [x for x in settings.sweep.weight_decay if x > 0]
        assert len(settings.sweep.weight_decay) >= 6
        assert max(positive) / min(positive) >= (1e2 if size == "overfit" else 1e4)  # where decay acts, or all
        assert settings.sweep.seeds >= 3
        assert set(settings.sweep.optimizers) == {"sgd", "noisy-sgd", "adamw"}


def test_the_pretrained_size_wants_a_checkpoint_and_looks_at_it_from_all_sides(villani):
    code, _, err = villani("study", "paper", "--size", "pretrained")
    assert code == 2
    assert "which checkpoint? give --model FOLDER" in err
    study = read_settings(None, "pretrained", model="folder")
    assert len(study.sweep.weight_decay) >= 4  # E2
    assert len(study.temperature) >= 3  # E1
    assert study.chains().weight_decay == study.convergence.weight_decay != study.sweep.weight_decay
    assert read_settings(None, "tiny").chains().weight_decay == [0.0, 1e-3, 1e-1]
    assert None not in (study.landscape, study.spectra, study.convergence, study.estimators, study.pathologies)
    assert study.certificates is None
    assert any("certificates: left out" in words for words in study.cuts())


def test_random_and_pretrained_weights_are_looked_at_alike():
    """So that what changes from one to the other is not the study."""
    random, pretrained = read_settings(None, "125m"), read_settings(None, "pretrained", model="folder")
    own = {"model", "steps", "learning_rate", "evaluate_every", "held_out_blocks"}
    assert random.sweep.model_dump(exclude=own) == pretrained.sweep.model_dump(exclude=own)
    assert random.convergence.model_copy(update={"learning_rate": pretrained.convergence.learning_rate}) == (
        pretrained.convergence
    )
    for part in ("temperature", "landscape", "spectra", "estimators", "pathologies", "certificates"):
        assert getattr(random, part) == getattr(pretrained, part)


def test_the_long_size_reaches_where_decay_acts():
    """λ whose memory (1 − μ)/(ηλ) is from 0.03 to 30 times the run, with AdamW and with SGD."""
    study = read_settings(None, "long")
    sweep = study.sweep
    assert sweep.steps * sweep.batch >= 20 * sweep.train_blocks
    assert sweep.train_blocks * sweep.block >= 200_000
    assert sweep.seeds >= 3
    for optimizer, momentum in (("adamw", 0.0), ("sgd", 0.9)):
        rate, decays = sweep.learning_rate[optimizer], [decay for decay in study.grid(optimizer) if decay]
        runs = [(1 - momentum) / (rate * decay * sweep.steps) for decay in decays]
        assert min(runs) <= 0.03
        assert max(runs) >= 30
        assert len(runs) >= 6
        assert sum(0.01 < run < 100 for run in runs) >= 3
        assert max(decays) / min(decays) == pytest.approx(1e4)


GRIDS = QUICK.replace('["sgd"]', '["sgd", "adamw"]').replace("sgd = 0.3", "sgd = 0.3, adamw = 0.01")


def test_an_optimiser_may_have_a_grid_of_its_own():
    study = read_settings(Path(write(GRIDS + "[grids]\nadamw = [0.0, 0.5, 2.0]\n")), None)
    assert study.cells() == [
        *(("sgd", decay, seed) for decay in (0.0, 0.1) for seed in (0, 1)),
        *(("adamw", decay, seed) for decay in (0.0, 0.5, 2.0) for seed in (0, 1)),
    ]
    assert needs.units(study)["sweep"] == 10


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("noisy-sgd = [0.0, 0.1]", "one for 'noisy-sgd', which is not among"),
        ("adamw = [0.0]", r"grids\.adamw=\[0\.0\]: a grid needs at least 2"),
        ("adamw = [0.0, 0.1, 0.1]", r"grids\.adamw: 0\.1 is given twice"),
        ("adamw = [0.0, -1.0]", "weight_decay=-1"),
        ("adamw = [0.1, 1.0]", r"grids\.adamw=.* expected it to begin with 0,"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, words):
    with pytest.raises(InputError, match=words):
        read_settings(Path(write(GRIDS + f"[grids]\n{grid}\n")), None)


def test_parts_are_left_out_by_name(villani):
    whole, less = (read_settings(None, "tiny", without=names) for names in ((), ["spectra", "certificates"]))
    assert (less.spectra, less.certificates) == (None, None)
    assert less.landscape == whole.landscape
    code, _, err = villani("study", "paper", "--size", "long", "--without", "spectra")
    assert code == 2
    assert "--without spectra: --size long has no such part" in err
    code, _, err = villani("study", "paper", "--size", "tiny", "--without", "sweep")
    assert code == 2
    assert "'sweep'" in err


def test_what_came_later_changes_no_rows_of_older_studies():
    """A digest is of what its rows depend on: not of how many seeds are looked at, nor of options not used."""
    tiny = read_settings(None, "tiny")
    fewer = tiny.model_copy(update={"spectra": tiny.spectra.model_copy(update={"seeds": 1, "memory": 2.0})})
    assert tiny.digest("spectra") == fewer.digest("spectra")
    other = tiny.model_copy(update={"spectra": tiny.spectra.model_copy(update={"basis": 9})})
    assert tiny.digest("spectra") != other.digest("spectra")
    old = '{"temperature":0.0001,"learning_rate":0.1,"steps":12,"chains":3,"groups":2,"sequences":2,"log_every":1}'
    assert tiny.digest("convergence") == hashlib.sha256(old.encode()).hexdigest()[:8]


def test_a_file_says_the_rest_of_what_a_size_leaves_open():
    settings = read_settings(Path(write(QUICK)), None)
    assert settings.sweep.weight_decay == [0.0, 0.1]
    assert settings.spectra is None
    assert read_settings(Path(write(QUICK + PARTS)), None).spectra.most == 12
