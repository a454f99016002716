"""Run folders side by side: what is paired, what is not, and what is refused."""

import json
import random
import shutil
from html import escape

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.damage import damaged_value
from tests.test_cli import refused
from villani import groups_from_text, load_model
from villani.commands.compare.words import headline
from villani.commands.content import read_records
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute

GROUPS = 5
DESIGN = {"tokenizer": "builtin", "groups": GROUPS, "sequences": 1, "block": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Models `one` and `two`, and runs: the same groups, another seed, another λ, another text design, no ledger."""
    base = tmp_path_factory.mktemp("compare")
    model = load_model("builtin:tiny?layers=1&width=8&context=32").model
    model.save_pretrained(base / "one")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(base / "two")
    made = {
        "before": ("one", {}), "after": ("two", {}), "seed": ("two", {"seed": 1}),
        "decay": ("one", {"weight_decay": [0.01], "decay": "match:wte"}), "fewer": ("two", {"groups": GROUPS - 1}),
    }  # fmt: skip
    for name, (which, options) in made.items():
        execute(MeasureSettings.given(model=str(base / which), **DESIGN | options), base / name)
    return base


@pytest.fixture
def runs(base, tmp_path, monkeypatch):
    """The same, to be spoiled; the present folder holds them."""
    shutil.copytree(base, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def compared(villani, *names, run="out"):
    code, out, err = villani("compare", *names, "--run", run, "--json")
    assert code == 0, err
    return json.loads(out)


def by_name(pair):
    """Differences of the statistics, and the first of Ψ."""
    return {difference["quantity"]: difference for difference in reversed(pair["differences"])}


def measurement(run):
    return json.loads((run / "records.json").read_text())["records"][0]


def per_group(folder):
    """Mean loss and gradient of every group, by transformers and autograd alone."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses, gradients, tokens = [], [], []
    for group in groups_from_text("builtin", model, **DESIGN):
        logits = model(group["input_ids"]).logits[:, :-1].flatten(0, 1)
        labels = group["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100)
        own = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in own]).double().numpy())
        losses.append(float(loss.detach()))
        tokens.append(int((labels != -100).sum()))
    assert len({*tokens}) == 1  # so that every group has the same weight
    return np.array(losses), np.array(gradients)


def test_the_same_groups_are_paired(villani, runs):
    record = compared(villani, "before", "after")
    (pair,) = record["pairs"]
    assert (pair["run"], pair["method"], pair["unlike"]) == ("after", "paired", [])
    assert "measured the same 5 groups of text" in pair["reason"]
    (losses, gradients), (later, moved) = per_group("one"), per_group("two")
    gap = later - losses
    own = by_name(pair)
    assert own["loss"]["value"] == pytest.approx(gap.mean(), rel=1e-4)
    assert own["loss"]["sem"] == pytest.approx(gap.std(ddof=1) / GROUPS**0.5, rel=1e-3)
    assert (own["loss"]["n"], own["loss"]["degrees_of_freedom"]) == (GROUPS, GROUPS - 1)
    norms = [(g @ g.T)[~np.eye(GROUPS, dtype=bool)].mean() for g in (gradients, moved)]
    assert own["gradient_norm_squared"]["value"] == pytest.approx(norms[1] - norms[0], rel=1e-3)
    separate = (own["loss"]["reference"]["sem"] ** 2 + own["loss"]["other"]["sem"] ** 2) ** 0.5
    assert own["loss"]["sem"] != pytest.approx(separate, rel=0.01)
    one, other = (measurement(runs / name) for name in ("before", "after"))
    for name in ("hessian_trace", "gradient_dot_parameters", "psi"):
        before, after = (r["psi"][0] if name == "psi" else r[name] for r in (one, other))
        assert own[name]["value"] == pytest.approx(after["value"] - before["value"])
        assert own[name]["reference"] == {key: before[key] for key in own[name]["reference"]}
    assert own["decayed_norm_squared"]["interval"] == [own["decayed_norm_squared"]["value"]] * 2
    assert record["comparisons"] == 5


def test_what_may_be_shared_is_not_taken_for_independent(villani, runs):
    """The first groups of fewer are the same: the tokens are not, and nothing is paired."""
    (pair,) = compared(villani, "before", "fewer")["pairs"]
    one, other = (measurement(runs / name)["hessian_trace"]["sem"] for name in ("before", "fewer"))
    assert pair["method"] == "dependent"
    assert by_name(pair)["hessian_trace"]["sem"] == pytest.approx(one + other)
    assert any(text.startswith("groups: 5") for text in pair["unlike"])
    (runs / "after" / "ledger.sqlite").unlink()
    (pair,) = compared(villani, "before", "after", run="without")["pairs"]
    assert (pair["method"], "not known one by one" in pair["reason"]) == ("dependent", True)


def test_two_weight_decays_at_the_same_weights(villani, runs):
    """What does not depend on λ and the mask is the same; Ψ is held at each run's own λ."""
    (pair,) = compared(villani, "before", "decay")["pairs"]
    own = by_name(pair)
    one, other = (measurement(runs / name) for name in ("before", "decay"))
    assert [own[q]["change"] for q in ("loss", "gradient_norm_squared", "hessian_trace")] == ["unchanged"] * 3
    assert (own["psi"]["weight_decay"], own["psi"]["temperature"]) == ([0.1, 0.01], [1e-3, 1e-3])
    assert own["psi"]["value"] == pytest.approx(other["psi"][0]["value"] - one["psi"][0]["value"])
    assert own["gradient_dot_parameters"]["change"] != "unchanged"
    assert own["psi"]["sem"] < 0.1 * own["psi"]["reference"]["sem"]  # ‖∇L‖² and tr ∇²L cancel


def test_the_page_and_the_terminal_answer_first(villani, runs):
    code, out, err = villani("compare", "before", "after", "seed", "--run", "out")
    assert code == 0, err
    record = read_records(runs / "out" / "records.json").records[0]
    page = (runs / "out" / "report.html").read_text()
    assert out.startswith("Between before and after ")
    assert out.splitlines()[0] == headline(record)
    first, _, rest = headline(record).partition(". ")
    assert f'<h2 class="headline">{escape(first)}.</h2><p class="more">{escape(rest)}</p>' in page
    assert page.count('<div class="scroll"') >= 2
    assert "(Bonferroni)" in page
    assert "nan" not in json.dumps([record.model_dump(mode="json")])
    again = (runs / "out" / "records.json").read_bytes()
    assert villani("compare", "before", "after", "seed", "--run", "out")[0] == 0
    assert (runs / "out" / "records.json").read_bytes() == again


def test_a_folder_may_have_the_name_of_a_column(villani, runs):
    (runs / "before").rename(runs / "change")
    (runs / "after").rename(runs / "statistic")
    code, _, err = villani("compare", "change", "statistic", "--run", "out")
    page = (runs / "out" / "report.html").read_text()
    assert code == 0, err
    assert all(f'<th scope="col">{name}</th>' in page for name in ("in change", "in statistic", "change", "statistic"))


def change(run, **fields):
    path = run / "records.json"
    content = json.loads(path.read_text())
    content["records"][0] |= fields
    path.write_text(json.dumps(content))


def test_other_folders_are_refused(villani, runs):
    villani("constants", "builtin:tiny?layers=1&width=8&context=32", "--run", "constants")
    refused(villani("compare", "before", "nowhere", "--json"), "nowhere: no such run folder; give the folder")
    refused(villani("compare", "before", "one", "--json"), "records.json: no such file")
    refused(
        villani("compare", "before", "constants", "--json"), "constants: a run of constants, which cannot be compared"
    )
    refused(villani("compare", "before", "--json"), "give two or more")
    refused(villani("compare", "--json"), "runs is missing")
    refused(villani("compare", "before", "before/", "--json"), "is given twice")


def test_strings_of_others_stay_text(villani, runs):
    own = measurement(runs / "after")
    change(runs / "after", model=own["model"] | {"architecture": "<script>alert(1)</script>\x1b[2J"})
    code, out, err = villani("compare", "before", "after", "--run", "out")
    page = (runs / "out" / "report.html").read_text()
    assert code == 0, err
    assert "\x1b" not in out
    assert "<script>alert(1)" not in page
    assert escape("<script>alert(1)</script>") in page


def test_damaged_records_are_compared_or_refused_in_a_line(villani, runs):
    rng = random.Random(0)
    whole = json.loads((runs / "after" / "records.json").read_text())
    codes = []
    for trial in range(25):
        (runs / "after" / "records.json").write_text(json.dumps(damaged_value(whole, rng)))
        if trial % 3 == 0:
            (runs / "after" / "ledger.sqlite").unlink(missing_ok=True)
        code, _, err = villani("compare", "before", "after", "--run", f"out{trial}", "--json")
        assert code in (0, 2), err
        assert "Traceback" not in err
        codes.append(code)
    assert 2 in codes
