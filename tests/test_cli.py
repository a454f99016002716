"""The command line as a user types it: what is printed where, exit codes, and every kind of bad input."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

SMALL = ["--groups", "4", "--sequences", "1", "--block", "16"]


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint of one's own, to spoil."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def refused(result, *fragments):
    """Exit code 2 and one line on stderr that says what; nothing on stdout, no traceback."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line.startswith("villani: ")]
    assert code == 2, (code, err)
    assert out == ""
    assert len(lines) == 1
    assert err.rstrip().endswith(lines[0])
    assert "Traceback" not in err
    for fragment in fragments:
        assert fragment in lines[0], lines[0]


def test_measure_prints_one_record_and_leaves_a_page(villani, checkpoint, tmp_path):
    run = tmp_path / "run"
    code, out, err = villani(
        "measure", checkpoint, "--tokenizer", "builtin", *SMALL, "--run", run, "--json",
        "--weight-decay", "0.1,1", "--temperature", "1e-3,2",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0, err
    assert out.count("\n") == 1
    assert "measuring" in err
    assert [(p["weight_decay"], p["temperature"]) for p in record["psi"]] == [(0.1, 1e-3), (0.1, 2), (1, 1e-3), (1, 2)]
    assert record["objective"]["weight_decay"] == 0.1
    assert record["cost"]["seconds"] > 0
    assert record["cost"]["tokens"] == 4 * 15
    assert "<html" in (run / "report.html").read_text()
    assert {p.name for p in run.iterdir()} == {
        "settings.toml", "ledger.sqlite", "records.json", "cost.json", "report.html",
    }  # fmt: skip
    kept = json.loads((run / "records.json").read_text())["records"][0]
    assert kept["cost"] is None
    assert kept["psi"] == record["psi"]


def test_the_recorded_command_gives_the_same_record(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", *SMALL, "--decay", "match:wte|h.0", "--probes", "2"]
    _, out, _ = villani(*words, "--run", tmp_path / "a", "--json")
    command = json.loads(out)["provenance"]["command"]
    assert command.startswith("villani measure 'builtin:tiny?width=8&layers=1' --text builtin")
    import shlex

    code, _, _ = villani(*shlex.split(command)[1:], "--run", tmp_path / "b")
    assert code == 0
    assert (tmp_path / "a" / "records.json").read_bytes() == (tmp_path / "b" / "records.json").read_bytes()


def test_another_weight_decay_needs_no_new_measurement(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", *SMALL, "--run", tmp_path / "run", "--json"]
    _, out, _ = villani(*words, "--weight-decay", "0.1")
    _, again, _ = villani(*words, "--weight-decay", "3", "--decay", "hf")
    first, second = json.loads(out), json.loads(again)
    assert second["cost"]["seconds"] == first["cost"]["seconds"]  # what the groups took the first time
    assert second["loss"] == first["loss"]
    assert second["psi"][0]["weight_decay"] == 3
    assert second["objective"]["undecayed"]


def test_human_output_and_report(villani, tmp_path):
    run = tmp_path / "run"
    code, out, _ = villani("measure", "builtin:tiny?width=8&layers=1", *SMALL, "--run", run)
    assert code == 0
    assert "Ψ" in out
    assert "no value at a single point" in " ".join(out.split())
    assert "report.html" in out
    (run / "report.html").unlink()
    code, out, _ = villani("report", run)
    assert code == 0
    assert out.strip() == str(run / "report.html")
    assert (run / "report.html").is_file()


def test_finite_and_hutchinson_and_float64(villani, tmp_path):
    code, out, _ = villani(
        "measure", "builtin:tiny?width=8&layers=1", *SMALL, "--run", tmp_path / "run", "--json", "--finite", "--probes",
        "2", "--trace", "hutchinson", "--products", "finite-differences", "--dtype", "float64",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 0
    assert record["design"]["products"] == "finite-differences"
    assert record["loss"]["sem"] == 0
    assert record["loss"]["status"] == "certified"
    assert record["gauss_newton_trace"] is None
    assert record["model"]["dtype"] == "float64"


def test_the_way_that_the_model_chooses_is_told_and_recorded(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", *SMALL, "--json", "--run"]
    code, out, err = villani(*words, tmp_path / "auto")
    design = json.loads(out)["design"]
    assert code == 0
    assert (design["trace"], design["trace_reason"]) == ("adjoint", "every operation has a Taylor rule")
    assert "trace by adjoint: every operation has a Taylor rule" in err
    assert all(tensor["hessian_trace"]["n"] == design["groups"] for tensor in json.loads(out)["tensors"])
    code, out, _ = villani(*words, tmp_path / "asked", "--trace", "gauss-newton")
    design = json.loads(out)["design"]
    assert (code, design["trace"], design["trace_reason"]) == (0, "gauss-newton", None)


def test_taylor_tells_tensors_apart_by_shares(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", *SMALL, "--trace", "taylor", "--json", "--run"]
    code, out, _ = villani(*words, tmp_path / "whole")
    assert code == 0
    assert json.loads(out)["gauss_newton_trace"]["value"] > 0
    assert json.loads(out)["tensors"][0]["hessian_trace"]["n"] == 4
    code, out, _ = villani(*words, tmp_path / "none", "--shares", "0")
    assert json.loads(out)["tensors"][0]["hessian_trace"] is None
    code, out, _ = villani(*words, tmp_path / "tensor", "--blocks", "tensor")
    assert code == 0
    assert json.loads(out)["tensors"][0]["hessian_trace"]["sem"] > 0
    assert json.loads(out)["design"]["blocks"] == "tensor"
    refused(
        villani("measure", "builtin:tiny", *SMALL, "--blocks", "layer", "--run", tmp_path / "x"),
        "trace='taylor'",
    )


def test_a_wanted_error_is_planned_for(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", "--sequences", "1", "--block", "16", "--groups", "4"]
    code, out, err = villani(*words, "--target-error", "abs:500", "--json", "--run", tmp_path / "run")
    record = json.loads(out)
    assert code == 0
    assert record["hessian_trace"]["sem"] <= 500
    assert record["plan"]["error"] == 500
    assert not record["plan"]["relative"]
    assert record["design"]["groups"] >= record["plan"]["planned_groups"] >= 4
    assert record["cost"]["predicted_seconds"] > 0
    assert record["cost"]["seconds"] > record["cost"]["pilot_seconds"] > 0
    assert "measuring: " in err
    assert "groups planned from the first 12 and" in (tmp_path / "run" / "report.html").read_text()


def test_doctor(villani):
    code, out, _ = villani("doctor")
    assert code == 0
    assert "torch 2.13" in out
    assert "second derivatives: eager and SDPA attention agree" in out


def test_version_and_help(villani):
    assert villani("--version")[1].startswith("villani 0.")
    code, out, _ = villani("measure", "--help")
    assert code == 0
    assert "--weight-decay" in out


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--weight-decay=-0.1"], ["weight_decay=-0.1: expected a finite number ≥ 0"]),
        (["--weight-decay=nan"], ["weight_decay=nan"]),
        (["--weight-decay=0.1,x"], ["--weight-decay '0.1,x': expected numbers"]),
        (["--temperature=0"], ["temperature=0.0: expected a finite number > 0"]),
        (["--temperature=inf"], ["temperature=inf"]),
        (["--probes=0"], ["probes=0: expected at least 1"]),
        (["--groups=2"], ["groups=2: expected at least 3"]),
        (["--finite"], ["probes=1: expected at least 2"]),
        (["--target-error=-1"], ["target_error=-1.0: expected a finite number > 0"]),
        (["--target-error=much"], ["target_error 'much': expected a share of the figure"]),
        (["--target=psi"], ["target=psi: goes with target_error"]),
        (["--target-error=0.1", "--finite"], ["--finite: with target_error the plan chooses"]),
        (["--target-error=0.1", "--trace=taylor"], ["trace=taylor: with target_error the plan chooses"]),
        (["--target-error=0.1", "--max-groups=10"], ["max_groups=10: expected at least 16"]),
        (["--shares=-1"], ["shares=-1: expected at least 0"]),
        (["--sequences=0"], ["sequences=0: expected at least 1"]),
        (["--block=1"], ["block=1: expected at least 2"]),
        (["--block=257"], ["block=257", "at most 256"]),
        (["--groups=100000"], ["text has", "give more text"]),
        (["--seed=-1"], ["seed=-1"]),
        (["--threads=0"], ["threads=0"]),
        (["--micro-tokens=0"], ["micro_tokens=0"]),
        (["--decay=some"], ["decay 'some' is unknown"]),
        (["--decay=match:["], ["not a regular expression"]),
        (["--device=cuda:9"], ["cuda:9"]),
        (["--dtype=bfloat16"], ["bfloat16"]),
        (["--trace=magic"], ["magic"]),
        (["--groups=many"], ["--groups", "valid integer"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--text=no/such/file.txt"], ["no/such/file.txt", "no such file"]),
        (["--tokenizer=./nowhere"], ["./nowhere"]),
        (["--data=nowhere", "--text=ptb"], ["nowhere", "not a folder"]),
    ],
)
def test_bad_options(villani, tmp_path, words, fragments):
    refused(villani("measure", "builtin:tiny", "--run", tmp_path / "run", *words), *fragments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "fragments"),
    [
        ("./nowhere", ["'./nowhere'", "no such folder"]),
        ("config:gpt5", ["unknown model", "gpt2"]),
        ("config:gpt2?layers=0", ["layers=0"]),
        ("builtin:tiny?vocab=100", ["ids up to", "the model knows 100"]),
        ("nobody/nothing", ["nobody/nothing"]),
        ("", ["no model is named"]),
    ],
)
def test_bad_models(villani, tmp_path, monkeypatch, model, fragments):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(villani("measure", model, "--run", tmp_path / "run"), *fragments)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["is empty"]),
        (b" \n\t\n", ["is empty"]),
        (b"too short", ["text has"]),
        ("naïve".encode("latin-1"), ["not UTF-8 at byte 2"]),
        ("wide".encode("utf-16"), ["text"]),
        (b"a\0b", ["NUL byte"]),
    ],
)
def test_bad_text(villani, tmp_path, content, fragments):
    (tmp_path / "text.txt").write_bytes(content)
    refused(villani("measure", "builtin:tiny", "--text", tmp_path / "text.txt", "--run", tmp_path / "run"), *fragments)


def test_a_truncated_checkpoint(villani, copy, tmp_path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(villani("measure", copy, "--tokenizer", "builtin", "--run", tmp_path / "run"), "truncated or corrupt")


def test_a_pickle_checkpoint_is_never_opened(villani, copy, tmp_path):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    refused(villani("measure", copy, "--tokenizer", "builtin", "--run", tmp_path / "run"), "pickle", "save_pretrained")


def test_a_weight_that_is_not_finite(villani, copy, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    tensors["transformer.wpe.weight"][0, 0] = float("inf")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(
        villani("measure", copy, "--tokenizer", "builtin", *SMALL, "--run", tmp_path / "run"), "transformer.wpe.weight"
    )


def test_a_loss_that_is_not_finite_names_the_group_and_keeps_the_rest(villani, copy, tmp_path):
    """Weights so large that float32 overflows: finite parameters, logits that are hardly or not."""
    tensors = load_file(copy / "model.safetensors")
    tensors = {name: torch.full_like(t, 1e38) if "ln_f" in name else t for name, t in tensors.items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    words = ["measure", copy, "--tokenizer", "builtin", *SMALL]
    refused(villani(*words, "--run", tmp_path / "run"), "group 0: the ", "not finite")
    refused(villani(*words, "--trace", "gauss-newton", "--run", tmp_path / "again"), "group 0: the loss")


def test_a_run_of_other_settings(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", "--run", tmp_path / "run", *SMALL]
    assert villani(*words)[0] == 0
    before = (tmp_path / "run" / "records.json").read_bytes()
    refused(villani(*words, "--seed", "1"), "begun with seed = 0, now 1")
    refused(villani(*words, "--text", "builtin,x"), "no such file")
    refused(
        villani("measure", "builtin:tiny?width=8&layers=1&seed=1", "--run", tmp_path / "run", *SMALL), "was begun with"
    )
    assert (tmp_path / "run" / "records.json").read_bytes() == before


def test_bad_run_directories(villani, tmp_path):
    words = ["measure", "builtin:tiny?width=8&layers=1", *SMALL, "--run"]
    (tmp_path / "file").write_text("")
    refused(villani(*words, tmp_path / "file"), "a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    refused(villani(*words, tmp_path / "other"), "no ledger.sqlite")
    refused(villani("report", tmp_path / "nowhere"), "nowhere")
    refused(villani("report", tmp_path / "other"), "records.json")
    (tmp_path / "other" / "records.json").write_text("{")
    refused(villani("report", tmp_path / "other"), "records.json")


def test_an_expression_that_begins_with_a_minus(villani):
    """It looks like an option: the message says where it goes, and there it is read."""
    code, _, err = villani("exact", "-cos(w)", "--weight-decay", "1", "--beta", "1")
    assert (code, err.count("\n")) == (2, 1)
    assert "No such option: -c; an expression" in err
    assert "after --" in err
    code, _, err = villani("exact", "--weight-decay", "1", "--beta", "1", "--json", "--", "-cos(w)")
    assert code == 0, err
    assert "after --" not in villani("exact", "--betta", "1")[2]


def test_no_command_and_unknown_commands(villani):
    refused(villani("mesure", "x"), "mesure")
    refused(villani("measure"), "Missing argument")


def test_python_m_villani_and_lazy_imports():
    """`--help` does not wait for torch, and the package imports without it."""
    done = subprocess.run([sys.executable, "-m", "villani", "--help"], capture_output=True, text=True, check=True)
    assert "measure" in done.stdout
    modules = ", ".join(
        f"villani.{name}" for name in ("cli", "statistics", "work.ledger", "choice.rules", "choice.selection")
    )
    check = f"import sys, {modules}; print({{'torch', 'scipy.stats', 'plotly'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names_survive_any_order_of_imports():
    check = "import villani.commands.demo.run, villani; assert callable(villani.measure); print(villani.Objective)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "Objective" in done.stdout


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["measure", "--blocks", "layer"], "blocks='layer' goes with trace='taylor'"),
        (["measure", "--decay", "some"], "decay 'some' is unknown"),
        (["measure", "--decay", "match:["], "is not a regular expression"),
        (["measure", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["measure", "--text", "absent.txt"], "no such file"),
        (["measure", "--probes", "1", "--finite"], "probes=1: expected at least 2 with --finite"),
        (["measure", "--trace", "hutchinson", "--deflate", "absent"], "deflate=absent: no eigenvectors there"),
        (["audit", "--rays", "gamma"], "direction 'gamma' is unknown"),
        (["spectrum", "--decay", "some"], "decay 'some' is unknown"),
        (["certify", "--text", "absent.txt"], "no such file"),
        (["certify", "--device", "abacus"], "cannot be used"),
        (["recommend", "--decay", "some"], "decay 'some' is unknown"),
        (["recommend", "--held-out", "absent.txt"], "no such file"),
    ],
)
def test_a_wrong_option_is_refused_before_a_model_is_loaded(villani, monkeypatch, tmp_path, words, fragment):
    """The model does not exist either, and is not what is complained about."""
    monkeypatch.chdir(tmp_path)
    command, *options = words
    refused(villani(command, "config:absent", *options), fragment)
    assert list(tmp_path.iterdir()) == []


def test_one_command_line_serves_those_who_parse_and_those_who_run(villani, tmp_path):
    from villani.cli import parse

    runs = [tmp_path / name for name in ("before", "run", "after")]
    words = [["exact", "w**2/2", "--weight-decay", "0.1", "--run", str(run)] for run in runs]
    _, settings, invocation = parse(words[0])
    assert villani(*words[1])[0] == 0
    assert [run.exists() for run in runs] == [False, True, False]
    assert parse(words[2])[1:] == (settings, invocation | {"run": runs[2]})
    assert not runs[2].exists()


def test_messages_speak_of_flags_as_they_are_typed():
    from villani.cli import with_flags

    assert with_flags("groups=1: expected 3, or finite=True") == "groups=1: expected 3, or --finite"
    assert with_flags("needs trust_remote_code=True.") == "needs --trust-remote-code."
    for untouched in ("finite=Trueish", "finite=False", "set is_decoder=True if its config has that"):
        assert with_flags(untouched) == untouched


def test_special_tokens_are_measured_and_recorded(villani, checkpoint, tmp_path):
    """A tokenizer whose template begins a document with a token: the loss of plain torch with it before every block."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import AutoModelForCausalLM

    backend = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "c": 3}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    (tmp_path / "tokenizer").mkdir()
    backend.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(" ".join("abcabbcacbca"))
    words = ["measure", checkpoint, "--tokenizer", tmp_path / "tokenizer", "--text", tmp_path / "text.txt", "--json",
             "--finite", "--groups", "3", "--sequences", "1", "--block", "4", "--probes", "2"]  # fmt: skip

    def measured(choice):
        code, out, err = villani(*words, "--special-tokens", choice, "--run", tmp_path / choice)
        assert code == 0, err
        return json.loads(out)

    ids = torch.tensor([" abc".index(c) for c in "abcabbcacbca"])
    rows = torch.cat([torch.zeros(4, 1, dtype=torch.int64), ids.view(4, 3)], dim=1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    with torch.no_grad():
        nats = -model(rows).logits.log_softmax(-1)[:, :-1].gather(2, rows[:, 1:, None])[..., 0]  # (4, 3)
    nats[1:, 0] = 0  # the first token of a block inside the document has no past
    record = measured("auto")
    counts = torch.tensor([3, 2, 2, 2])
    means = [(nats.sum() - nats[left].sum()) / (9 - counts[left]) for left in range(4)]  # three of the four blocks
    assert any(record["loss"]["value"] == pytest.approx(float(mean), rel=1e-5) for mean in means)
    assert "every block begins with '<s>' (id 0), as the tokenizer's template does" in record["text"]["special_tokens"]
    assert "every block begins with &#x27;&lt;s&gt;&#x27;" in (tmp_path / "auto" / "report.html").read_text()
    plain = measured("none")
    assert plain["text"]["token_checksum"] != record["text"]["token_checksum"]
    assert plain["text"]["blocks"] == 3


@pytest.mark.parametrize(("words", "command"), [((), "measure"), (("study",), "paper")])
def test_no_command_is_shown_what_there_is_and_is_no_success(villani, words, command):
    code, out, err = villani(*words)
    assert (code, err) == (2, "")
    assert f" {command} " in out
