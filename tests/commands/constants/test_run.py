"""`villani constants MODEL`: shapes in, a sentence and a record out."""

import json
import math
import re
import sys

import pytest
import torch

from villani.cli import main
from villani.commands.constants.settings import ConstantsSettings
from villani.commands.running import execute
from villani.inputs.models import load_model

SMALL = "builtin:tiny?layers=1&width=8&context=32"


@pytest.fixture
def villani(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["villani", "constants", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return run


def test_a_record_for_every_weight_decay_and_temperature(villani):
    code, out, err = villani(SMALL, "--weight-decay", "0.1,1", "--temperature", "2,0.5", "--time", "50", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert [(p["weight_decay"], p["temperature"]) for p in record["points"]] == [(0.1, 2), (0.1, 0.5), (1, 2), (1, 0.5)]
    vocabulary, parameters = record["vocabulary"], record["parameters"]
    first = {constant["id"]: constant for constant in record["points"][0]["constants"]}
    assert first["C8"]["value"] == pytest.approx(10 + parameters * 100)
    assert first["C8"]["status"] == "as-claimed"
    assert first["C3"]["value"] == pytest.approx(10 * (1 + 9 * vocabulary))
    assert first["C3"]["status"] == "certified"
    assert record["points"][0]["visible"] == 50
    assert record["points"][1]["visible"] == 12.5
    assert record["smoothing_cost"] == pytest.approx(0.105, abs=1e-3)


def test_people_get_the_sentence_and_a_page(villani, tmp_path):
    code, out, _ = villani(SMALL, "--weight-decay", "0.1", "--run", "r")
    assert code == 0
    assert "orders of magnitude" in out
    page = re.search(r"<main>.*</main>", (tmp_path / "r" / "report.html").read_text(encoding="utf-8"), re.S)[0]
    for words in (
        "the preprint claims a log-Sobolev constant of", "orders of magnitude below it.", "can see constants up to 100"
    ):  # fmt: skip
        assert words in page


def test_figures_that_are_given_are_estimated_and_may_refute(villani):
    options = ("--curvature", "0.05", "--gradient-norms", "0.5,2", "--variance", "1e30", "--json")
    point = json.loads(villani(SMALL, *options)[1])["points"][0]
    found = {constant["id"]: constant for constant in point["constants"]}
    assert found["C2"]["value"] == pytest.approx(20)
    assert "2 everywhere" in found["C4"]["hypotheses"]
    assert found["C9"]["status"] == "statistical"
    assert {id: found[id]["status"] for id in ("C2", "C3", "C8")} == {
        "C2": "estimated", "C3": "certified", "C8": "as-claimed",
    }  # fmt: skip
    assert "contradict the certified constant" in point["sentence"]
    quiet = json.loads(villani(SMALL, "--curvature", "0.05", "--json")[1])["points"][0]
    assert {c["id"]: c["status"] for c in quiet["constants"]}["C2"] == "estimated"


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--decay", "hf"], "do not decay"),
        (["--weight-decay", "0"], "weight_decay=0"),
        (["--weight-decay", "-1"], "weight_decay=-1"),
        (["--temperature", "0"], "temperature=0"),
        (["--alpha", "1"], "alpha=1"),
        (["--time", "0"], "time=0"),
        (["--curvature", "nan"], "curvature=nan"),
        (["--variance", "-1"], "variance=-1"),
        (["--gradient-norms", "-1"], "gradient_bound=-1"),
        (["--weight-decay", "x"], "expected numbers"),
    ],
)
def test_bad_input_is_one_line(villani, words, fragment):
    code, out, err = villani(SMALL, *words)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("villani: ")]
    assert len(lines) == 1
    assert fragment in lines[0]


SHAPE = "layers=1&width=16&heads=2&vocab=64&context=16"


def test_raw_cross_entropy_gets_a_constant_where_the_head_is_untied(tmp_path):
    """d_φ = 64·16 + 2·16 for Pythia, M = √(17/2)·4(d_φ + 2β ln 64)/(βλ); ln C_P = M + ln 63 + … to a part in 10⁹."""
    _, record = execute(
        ConstantsSettings(model=f"config:pythia-70m?{SHAPE}", weight_decay=[0.1], temperature=[2.0]),
        tmp_path / "untied",
    )
    found = record.points[0].spectral_gap
    difference = math.sqrt(17 / 2) * 4 * (64 * 16 + 32 + 2 * math.log(64)) / 0.1
    assert found.constant.log10 == pytest.approx((difference + math.log(63) + math.log(20)) / math.log(10), rel=1e-9)
    assert (found.constant.id, found.constant.status, found.constant.kind) == ("C10", "certified", "Poincaré")
    assert "nothing follows about the log-Sobolev constant C_LS or about KL" in found.text
    assert {c.id for c in record.points[0].constants} == {"C3", "C8"}, "of another law: never ranked with these"
    assert found.text in (tmp_path / "untied" / "records.json").read_text()


@pytest.mark.parametrize("name", ["gpt-neo-125m", "smollm-135m"])
def test_a_tied_head_is_told_why_not(tmp_path, name):
    _, record = execute(ConstantsSettings(model=f"config:{name}?{SHAPE}"), tmp_path / "tied")
    found = record.points[0].spectral_gap
    assert found.constant is None
    assert "as a tied one is: also in aten.embedding.default" in found.text
    assert "open" in found.text


def test_it_ends_in_what_to_do_next_about_lambda(villani, tmp_path):
    """√(s/2λ) beside the rms of the weights, worked out from the model itself."""
    weights = torch.cat([p.detach().flatten() for p in load_model(SMALL).model.parameters()]).double()
    ratio = math.sqrt(2 / 0.2) / float((weights**2).mean().sqrt())
    code, out, err = villani(SMALL, "--run", "r")
    assert code == 0, err
    told = [line for line in out.splitlines() if line.startswith("What to do next about λ: ")]
    assert len(told) == 1
    assert f"{ratio:.2g} times their rms" in told[0]
    assert "No figure here sets λ" in told[0]
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert f"{ratio:.2g} times their rms" in page
    code, out, err = villani(SMALL, "--learning-rate", "1e-5", "--steps", "300", "--json")
    assert code == 0, err
    following = json.loads(out)["next_step"]
    assert "forgets over 1/(ηλ) = 1e+06 steps: it cannot act in 300" in following
    assert "s = 1e-05 (heuristic)" in following


def test_sgd_resembles_the_temperature_of_its_noise(villani):
    size = sum(p.numel() for p in load_model(SMALL).model.parameters())
    own = ["--optimizer", "sgd", "--learning-rate", "0.1", "--momentum", "0.9"]
    noise = ["--batch-tokens", "512", "--gradient-noise", "4000"]
    code, out, err = villani(SMALL, *own, *noise, "--json")
    assert code == 0, err
    assert f"Your SGD resembles s = {0.1 * 4000 / (0.1 * 512 * size):.2g} (heuristic)" in json.loads(out)["next_step"]
    assert "takes the noise of its gradients" in json.loads(villani(SMALL, *own, "--json")[1])["next_step"]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--steps", "3"], "--steps is not used without --learning-rate"),
        (["--learning-rate", "0"], "learning_rate=0"),
        (["--learning-rate", "1", "--momentum", "0.9"], "goes with sgd"),
        (["--learning-rate", "1", "--gradient-noise", "2"], "--gradient-noise is not used by adamw"),
        (["--learning-rate", "1", "--optimizer", "sgd", "--momentum", "1"], "momentum=1"),
        (["--learning-rate", "1", "--optimizer", "sgd", "--batch-tokens", "-1"], "batch=-1"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(villani, words, fragment):
    code, out, err = villani(SMALL, *words)
    assert (code, out) == (2, "")
    assert fragment in err
