"""`villani recommend MODEL`: the record, the page, where rules land, resuming, and bad input in one line."""

import json
import math
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from villani.commands import subject
from villani.commands.recommend import cells as training
from villani.commands.recommend import run as study
from villani.commands.recommend.page import show
from villani.commands.recommend.record import RecommendationRecord
from villani.inputs.models import load_model
from villani.objective.parameters import ParameterSpace

SMALL = "builtin:tiny?layers=1&width=8&context=16"
QUICK = [
    "--block", "16", "--train-blocks", "30", "--held-out-blocks", "12", "--steps", "4", "--batch", "2", "--seeds", "2",
    "--text", "t.txt", "--weight-decay", "0,0.5",
]  # fmt: skip
CHEAP = "constants,ema,power-lines,loshchilov-hutter,claimed,certified,held-out"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text(" ".join(f"The {k} quick foxes jump over {k * k % 97} dogs." for k in range(120)))


def audited(*orbits):
    def threshold(laplacian, gradient, norm):
        return SimpleNamespace(
            laplacian=SimpleNamespace(value=laplacian), gradient_norm_squared=SimpleNamespace(value=gradient),
            norm_squared=norm,
        )  # fmt: skip

    found = [SimpleNamespace(name=name, confirmed=True, threshold=threshold(*values)) for name, *values in orbits]
    return SimpleNamespace(
        objective=SimpleNamespace(weight_decay=0.5), differential_evidence=SimpleNamespace(orbits=found)
    )


def test_a_record_of_what_the_grid_and_the_rules_say(villani, monkeypatch, capsys):
    asked, perform = [], study.perform

    def audit(settings, work):
        if settings.name != "audit":
            return perform(settings, work)
        asked.append(settings)
        return work.run, audited(("pair", 4e6, 0.0, 0.25 * 4))  # s·Δ/‖A‖² = 1e-6·4e6/4

    monkeypatch.setattr(study, "perform", audit)
    words = [
        *QUICK,
        "--optimizer",
        "noisy-sgd,adamw",
        "--evaluate-every",
        "2",
        "--verify-rules",
        "--run",
        "r",
        "--json",
    ]
    code, out, err = villani("recommend", SMALL, *words)
    assert code == 0, err
    record = RecommendationRecord.model_validate_json(out)
    noisy, adam = record.optimizers
    assert (noisy.optimizer, adam.optimizer) == ("noisy-sgd", "adamw")
    assert asked[0].temperature == 1e-6
    assert record.cost is not None
    assert record.cost.peak_memory_bytes > 2**20
    for one in record.optimizers:
        assert [point.weight_decay for point in one.points] == [0, 0.5]
        losses = {point.weight_decay: point.held_out.value for point in one.points}
        assert one.recommended == min(losses, key=losses.get)
        assert one.recommended in one.kept
        for point in one.points:
            assert point.margin.low <= point.margin.value <= point.margin.high
            assert point.margin.value == pytest.approx(point.held_out.value - min(losses.values()))
            assert point.held_out_bound > point.held_out.value - 0.2
            assert [step for step, _ in point.curve] == [0, 2, 4]
        none, half = one.points
        assert none.change is none.detectable is None
        assert half.change.value == pytest.approx(half.held_out.value - none.held_out.value)
        assert half.detectable > 0
        assert half.resolved in (0, math.copysign(1, half.change.value))
        assert "the held-out loss" in one.effect
    guard = next(rule for rule in noisy.rules if rule.id == "guard")
    assert guard.weight_decay == pytest.approx(1.0)
    assert guard.judged_at == pytest.approx(1.0)  # verified
    assert guard.share == 0.5
    assert next(rule for rule in noisy.rules if rule.id == "certificate").weight_decay is None  # vacuous
    assert all(point.certified > record.log_vocabulary for point in noisy.points)
    assert all(point.certified is None for point in adam.points)
    ema = next(rule for rule in adam.rules if rule.id == "ema")
    assert ema.weight_decay is not None
    assert next(rule for rule in noisy.rules if rule.id == "ema").would_be == pytest.approx(
        ema.weight_decay * 2e-3 / 0.5
    )
    assert all(rule.weight_decay is None for rule in adam.rules if rule.id in ("claimed", "certified", "guard"))
    held = next(rule for rule in adam.rules if rule.id == "held-out")
    assert (held.weight_decay, held.share) == (adam.recommended, 1.0)
    page = open("r/report.html", encoding="utf-8").read()  # noqa: SIM115
    for text in ("where rules lead", "in other conventions", "Which λ is that?", "made for AdamW"):
        assert text in page
    capsys.readouterr()
    show(record, Path("r"), Console(width=10000))
    told = capsys.readouterr().out
    assert "refuses" in told
    assert adam.effect in told


def test_a_killed_run_resumes_and_other_questions_need_no_training(villani, monkeypatch):
    words = [*QUICK, "--optimizer", "adamw", "--rules", CHEAP]
    assert villani("recommend", SMALL, *words, "--run", "a")[0] == 0
    train, calls = training.train, []

    def dies(*args, **named):
        calls.append(named["weight_decay"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args, **named)

    monkeypatch.setattr(training, "train", dies)
    assert villani("recommend", SMALL, *words, "--run", "b")[0] == 1
    assert villani("recommend", SMALL, *words, "--run", "b")[0] == 0
    assert calls == [0, 0.5, 0, 0, 0.5]  # seed by seed
    a, b = (open(f"{name}/records.json", "rb").read() for name in "ab")  # noqa: SIM115
    assert a == b
    code, out, _ = villani("recommend", SMALL, *words[:-1], "ema", "--delta", "0.2", "--run", "b", "--json")
    assert code == 0
    assert [rule["id"] for rule in json.loads(out)["optimizers"][0]["rules"]] == ["ema"]
    assert len(calls) == 5
    code, _, err = villani("recommend", SMALL, *words, "--run", "b", "--batch", "3")
    assert code == 2
    assert "was begun with" in err


@pytest.mark.parametrize("first", [["--weight-decay", "0,2"], ["--optimizer", "sgd"], ["--seeds", "3"]])
def test_a_run_goes_on_with_another_grid_and_says_so(villani, monkeypatch, first):
    """The best λ lies at an end of the grid: what is trained stays, and records are those of a run begun so."""
    words = [*QUICK, "--optimizer", "adamw", "--rules", CHEAP]
    small = [*words]
    small[small.index(first[0]) + 1] = first[1]

    def asked(run, words=words):
        code, out, err = villani("recommend", SMALL, *words, "--run", run, "--json")
        assert code == 0, err
        return json.loads(out) | {"cost": None}

    before = asked("grown", small)
    trained, train = [], training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: trained.append(k["weight_decay"]) or train(*a, **k))
    grown = asked("grown")
    assert len(trained) == {"--weight-decay": 2, "--optimizer": 4, "--seeds": 0}[first[0]]
    assert "after results of another grid had been told" in grown["grid_note"]
    assert grown["grid_note"] in Path("grown/report.html").read_text(encoding="utf-8")
    whole = asked("whole")
    assert whole["grid_note"] == ""
    assert grown | {"grid_note": ""} == whole
    refused = [*words, "--learning-rate", "0.5", "--run", "grown"]
    code, _, err = villani("recommend", SMALL, *refused)
    assert code == 2
    assert "trained at learning rate 0.002, now 0.5: use the same settings or another --run" in err
    assert "0.002" in Path("grown/settings.toml").read_text(encoding="utf-8")  # as the records have it
    assert asked("grown", small) == before  # whose grid was fixed beforehand
    assert grown["grid_note"] in villani("recommend", SMALL, *words, "--run", "grown")[1].replace("\n", " ")


def test_where_all_diverges_that_is_what_is_said(villani):
    words = [*QUICK[:-1], "1e30,2e30", "--optimizer", "sgd", "--learning-rate", "1", "--rules", CHEAP]
    code, out, err = villani("recommend", SMALL, *words, "--seeds", "1", "--run", "r", "--json")
    assert code == 0, err
    (one,) = json.loads(out)["optimizers"]
    assert one["recommended"] is None
    assert one["kept"] == []
    assert "diverged at every λ" in one["sentence"]
    assert "lower the learning rate" in open("r/report.html", encoding="utf-8").read()  # noqa: SIM115


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weight-decay", "0.1"], "at least 2 values"),
        (["--weight-decay", "0.1,0.1"], "given twice"),
        (["--weight-decay", "0.1,-1"], "weight_decay=-1"),
        (["--weight-decay", "a,b"], "expected numbers"),
        (["--rules", "astrology"], "'astrology': unknown"),
        (["--optimizer", "lion"], "'lion': unknown"),
        (["--optimizer", "adamw", "--temperature", "1"], "goes with noisy-sgd"),
        (["--learning-rate", "sgd=1,lion=2"], "'lion=2': expected NAME=VALUE"),
        (["--text", "nowhere.txt"], "no such file"),
        (["--audit", "nowhere"], "no records.json there"),
        (["--delta", "2"], "delta=2"),
    ],
)
def test_bad_input_is_one_line(villani, words, told):
    code, _, err = villani("recommend", SMALL, *QUICK, *words)
    assert code == 2
    assert told in err
    assert told in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_seeds_that_share_a_checkpoint_say_so(villani, checkpoint, tmp_path, capsys):
    words = [*QUICK, "--rules", "constants", "--optimizer", "sgd", "--tokenizer", "builtin"]
    code, out, err = villani("recommend", checkpoint, *words, "--run", "shared", "--json")
    assert code == 0, err
    shared = RecommendationRecord.model_validate_json(out)
    code, out, err = villani("recommend", SMALL, *words, "--run", "own", "--json")
    assert code == 0, err
    own = RecommendationRecord.model_validate_json(out)
    for record, run, said in ((shared, "shared", True), (own, "own", False)):
        assert record.shared_start is said
        assert ("speak of that start only" in record.sentence) is said
        page = (tmp_path / run / "report.html").read_text()
        assert ("speak of that start only" in page) is said
        assert ("2 training seeds of own starts" in page) is not said
        show(record, tmp_path / run, Console())
        assert ("speak of that start only" in capsys.readouterr().out) is said


def test_nested_runs_are_those_of_their_own_commands(villani, tmp_path):
    """The audit and the certificates see the start of training, though cells were trained in the same process before.

    Each nested record's command, run alone in a process that trained nothing, gives the same record.
    """
    words = [*QUICK, "--seed", "1", "--optimizer", "sgd,noisy-sgd", "--rules", "guard,certificate", "--clip", "none"]
    code, _, err = villani("recommend", SMALL, *words, "--run", "r")
    assert code == 0, err
    start = ParameterSpace(load_model(SMALL).model, "all").checksum()
    nested = sorted((tmp_path / "r").glob("*/records.json")) + sorted((tmp_path / "r").glob("*/*/records.json"))
    assert [path.parent.name.split("-")[0] for path in nested] == ["audit", "0.0", "0.5"]
    for number, path in enumerate(nested):
        (record,) = json.loads(path.read_text())["records"]
        assert record["provenance"]["parameter_checksum"] == start
        again = shlex.split(record["provenance"]["command"])[1:]
        code, _, err = villani(*again, "--run", f"alone-{number}")
        assert code == 0, err
        assert (tmp_path / f"alone-{number}" / "records.json").read_bytes() == path.read_bytes()


def test_a_sweep_loads_its_model_once_and_reads_its_text_once(villani, checkpoint, monkeypatch):
    counts = {"model": 0, "text": 0, "tokenised": 0}

    def counted(name, module, attribute):
        real = getattr(module, attribute)

        def call(*args, **named):
            counts[name] += 1
            return real(*args, **named)

        monkeypatch.setattr(module, attribute, call)

    counted("model", subject, "load_model")
    counted("text", subject, "load_corpus")
    counted("tokenised", subject, "cut_corpus")
    words = [*QUICK[:-1], "0,0.1,0.5", "--tokenizer", "builtin", "--run", "r"]
    code, _, err = villani("recommend", str(checkpoint), *words)  # 3 optimisers × 3 λ × 2 seeds, an audit
    assert code == 0, err
    assert counts == {"model": 1, "text": 1, "tokenised": 1}
    code, _, err = villani("recommend", SMALL, *words[:-1], "own")  # and certificates
    assert code == 0, err
    assert counts == {"model": 1 + 2, "text": 2, "tokenised": 2}  # a random start for each of two seeds


SLOW = [*QUICK, "--optimizer", "adamw", "--rules", "constants,held-out"]


def test_weights_stay_only_where_they_are_asked_for(villani, tmp_path, monkeypatch):
    assert villani("recommend", SMALL, *SLOW, "--run", "r")[0] == 0
    before = (tmp_path / "r" / "records.json").read_bytes()
    assert not [*(tmp_path / "r").rglob("*.safetensors")]
    assert villani("recommend", SMALL, *SLOW, "--keep-weights", "--run", "r")[0] == 0  # trained again, to the same bits
    assert villani("recommend", SMALL, *SLOW, "--keep-weights", "--run", "kept")[0] == 0
    first, other = (sorted((tmp_path / run / "models").glob("*.safetensors")) for run in ("r", "kept"))
    assert len(first) == 4
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in other]

    def stripped(run):
        return (tmp_path / run / "records.json").read_bytes().replace(b" --keep-weights", b"")

    assert stripped("r") == stripped("kept") == before
    train = training.train
    first[0].unlink()
    monkeypatch.setattr(training, "train", lambda *a, **named: train(*a, **named | {"learning_rate": 0.5}))
    code, _, err = villani("recommend", SMALL, *SLOW, "--keep-weights", "--run", "r")
    assert code == 2
    assert "led to other weights than before" in err
    assert not first[0].exists()


def test_long_or_large_work_is_agreed_to_first(villani, tmp_path, monkeypatch):
    """Without a terminal a refusal that names the cost and the option; what was begun goes on unasked."""
    monkeypatch.setattr("villani.work.budget.LONG", 0.0)
    code, out, err = villani("recommend", SMALL, *SLOW, "--run", "r")
    assert (code, out) == (2, "")
    line = err.strip().splitlines()[-1]
    assert line.startswith("villani: a sweep of 4 training runs would take roughly ")
    assert "of memory, " in line
    assert "on disk: give --yes to begin all the same, or train fewer cells" in line
    assert not (tmp_path / "r").exists()
    assert villani("recommend", SMALL, *SLOW, "--yes", "--run", "r")[0] == 0
    assert villani("recommend", SMALL, *SLOW, "--run", "r")[0] == 0
    monkeypatch.setattr("villani.work.budget.LONG", 3600.0)
    monkeypatch.setattr("villani.work.budget.LARGE", 1e6)
    assert "give --yes" in villani("recommend", SMALL, *SLOW, "--run", "other")[2]


@pytest.mark.parametrize(("optimizer", "momentum"), [("adamw", 0.0), ("sgd", 0.9)])
def test_the_first_line_tells_that_decay_cannot_act(villani, capsys, optimizer, momentum):
    """1/(ηλ) and what decay takes away, from the schedule written out again."""
    words = [*QUICK[:-1], "0,0.001,1000", "--optimizer", optimizer, "--rules", "constants,held-out"]
    code, out, err = villani("recommend", SMALL, *words, "--learning-rate", "1e-8", "--run", "r", "--json")
    assert code == 0, err
    record = RecommendationRecord.model_validate_json(out)
    (one,) = record.optimizers
    rates = [1e-8] + [1e-8 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)]  # one step of warm-up, at its end
    for point in one.points:
        left = math.prod(1 - rate * point.weight_decay / (1 - momentum) for rate in rates)
        assert point.forgotten == pytest.approx(1 - left, rel=1e-3, abs=1e-15)
    assert one.undecided
    assert f"even at λ = 1000 decay forgets over {'(1 − μ)/(ηλ)' if momentum else '1/(ηλ)'} = " in one.action
    assert f"{(1 - momentum) / (1e-8 * 1000):,.3g} steps" in one.action
    assert one.sentence.startswith(f"{'SGD with L2' if momentum else 'AdamW'}: undecided; no λ at which training held")
    show(record, Path("r"), Console())
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Undecided: no λ of the grid can be told from another.")
    assert "decay cannot act" in first
    page = Path("r/report.html").read_text(encoding="utf-8")
    assert "Undecided: no λ of the grid can be told from another." in page
    fast = villani("recommend", SMALL, *words, "--learning-rate", "1e-2", "--run", "fast", "--json")
    (one,) = json.loads(fast[1])["optimizers"]
    assert "decay acts from λ = 1000 on, and cannot below" in one["action"]


def test_a_checkpoint_is_trained_at_the_rate_that_its_files_tell(villani, checkpoint, tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(checkpoint, folder)
    (folder / "training_args.json").write_text('{"learning_rate": 1.5e-4, "optim": "adamw_torch"}')
    words = [*QUICK, "--rules", "constants", "--tokenizer", "builtin"]
    code, out, err = villani("recommend", folder, *words, "--run", "r", "--json")
    assert code == 0, err
    record = RecommendationRecord.model_validate_json(out)
    (one,) = record.optimizers
    assert (one.optimizer, one.learning_rate) == ("adamw", 1.5e-4)
    assert "training_args.json of the checkpoint" in one.learning_rate_source
    assert "AdamW 0.00015 (the highest in training_args.json of the checkpoint)" in Path("r/report.html").read_text()
    again = shlex.split(record.provenance.command)[1:]
    assert villani(*again, "--run", "again")[0] == 0
    assert Path("r/records.json").read_bytes() == Path("again/records.json").read_bytes()
