"""Every script of benchmarks/ runs, at a size that says nothing but that it runs, and writes nowhere else.

A script is imported, its sizes and the file of its figures are replaced, and its `main` is called. Peers are stood in
for by a program that speaks the protocol of benchmarks/peers/, in the place of their environments.
"""

import contextlib
import importlib.util
import io
import json
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from villani.cli import parse, perform
from villani.commands.running import execute
from villani.inputs.corpora import load_corpus
from villani.inputs.models import load_model

ROOT = Path(__file__).parents[1]
SMALLEST = "builtin:tiny?layers=1&width=8"
TINY = "config:gpt-neo-125m?layers=1&width=8&heads=2&context=128&vocab=2048"
STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np
peak = {"peak_rss_bytes": 1}
if "eigen_worker" in sys.argv[1]:
    *_, ids, threads, top, accuracy, output = sys.argv
    with (Path(sys.argv[3]) / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    size = sum(int(np.prod(one["shape"])) for name, one in header.items() if name != "__metadata__")
    np.save(output, np.random.default_rng(0).standard_normal((int(top), size)).astype(np.float32))
    print(json.dumps(peak | {"seconds": 1.0, "cpu_seconds": 1.0, "values": [1.0] * int(top), "version": "0"}))
else:
    print(json.dumps({"stand-in": "0"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(peak | {"value": float(hash(line) % 97), "seconds": 0.1}), flush=True)
"""


@dataclass
class Trial:
    """How one script is run: its words, what of it is replaced, and the files in its working folder that it needs."""

    words: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    writes: bool = True


class Here:
    """In place of `subprocess`, for scripts that start themselves or villani: runs them in this process."""

    PIPE = subprocess.PIPE

    @staticmethod
    def run(words: list[str], **_: Any) -> Any:
        out, argv = io.StringIO(), sys.argv
        module = words[1:3] == ["-m", "villani"]
        sys.argv = words[1:]
        try:
            with contextlib.redirect_stdout(out):
                if module:
                    assert perform(*parse(words[3:])) == 0
                else:
                    runpy.run_path(words[1], run_name="__main__")
        finally:
            sys.argv = argv
        return SimpleNamespace(stdout=out.getvalue())


OUTPUT = ["--output", "figures.json"]
HERE = {"subprocess": Here}
SCALING = {"BASE": {"layers": 1, "width": 16, "sequences": 1, "block": 16, "probes": 1}, "VARIED": {"layers": (1, 2)}}
TRIALS = {
    "callback_overhead": Trial(["--steps", "60", "--repeats", "1", "--max-overhead", "0.9"]),
    "certificates": Trial(
        ["tiny", "--list"],
        {"ATTEMPTS": {"tiny": {"model": SMALLEST, "block": 16, "blocks": 16, "steps": 4, "batch": 4}}},
    ),
    "coverage": Trial(sizes={"REPETITIONS": 4, "SIZE": 20, "NORMS": (0.0, 1.0), "DECAYS": (0.0,)}),
    "coverage_plan": Trial(sizes={"REPETITIONS": 4}),
    "coverage_small_pool": Trial(sizes={"REPETITIONS": 4}, writes=False),
    "coverage_threshold": Trial(
        sizes={"REPETITIONS": 2, "RANKS": (2,), "SIZES": (1.0,), "GROUPS": (4,), "TRACE_NOISE": (0.1,)}
    ),
    "coverage_worst_cases": Trial(
        ["selection", "share", "threshold"], {"REPETITIONS": {"selection": 2, "share": 1, "threshold": 1}}
    ),
    "langevin_step": Trial([TINY, "--repeats", "1", "--block", "16", "--threads", "1", *OUTPUT], HERE),
    "schedules": Trial(["--seeds", "2", "--steps", "6"]),
    "trace_scaling": Trial(sizes=SCALING | HERE | {"REPEATS": 1}),
    "symmetry_scaling": Trial(["--layers", "1,2", "--width", "16", "--out", "figures.json"], HERE),
    "exact_hidden_features": Trial(sizes={"LINES": slice(0, 1), "PLANES": []}, writes=False),
    "hostile_files": Trial(["--count", "3", *OUTPUT]),
    "kill_campaign": Trial(
        ["--kills", "1", *OUTPUT], {"COMMANDS": {"exact": ["exact", "double-well", "--weight-decay", "0.5"]}}
    ),
    "trace_against_peers": Trial(
        ["--model", TINY, "--text", "builtin", "--tokenizer", "builtin", "--samples", "4", "--ways", "taylor-whole",
         "--peers", "PyHessian", "--threads", "1", "--installed", "peers", *OUTPUT]
    ),
    "eigen_against_peers": Trial(
        ["--model", TINY, "--sequences", "1", "--top", "1", "--tolerance", "0.1", "--threads", "1", "--memory", "1",
         "--eigenthings-steps", "4", "--pyhessian-tolerances", "none", "--installed", "peers", *OUTPUT]
    ),
}  # fmt: skip
ELSEWHERE = {
    "decay_mechanism": "tests/test_decay_scripts.py",
    "unfinished_study": "tests/test_decay_scripts.py",
    "frozen_commands": "test_frozen_commands_are_recorded_and_compared",
    "independent_figures": "test_independent_figures_agree_and_a_wrong_one_is_seen",
    "deflation": "test_deflation_takes_the_vectors_of_a_run",
    "gradient_norm_bias": "test_the_bias_of_a_mini_batch_is_drawn",
    "zoo": "tests/test_zoo.py has what it does to a type, of 31 types",
    "sharded_jobs": "tests/integrations/test_sharded.py has each of its layouts, smaller",
    "streamed": "makes gigabytes; tests/commands/measure/test_streamed.py has the command",
    "ranks": "tests/work/test_team.py has commands of two processes",
    "page_pictures": "tests/report/test_browser.py looks at a page in the browser, where there is one",
    "train_ptb": "needs a text that may not be passed on; `villani.dynamics.training` is tested",
}


def test_every_script_has_a_trial():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == TRIALS.keys() | ELSEWHERE.keys()


@pytest.fixture
def script(monkeypatch, tmp_path):
    """A script as a module whose figures go to figures.json of the working folder."""

    def load(name: str) -> Any:
        path = ROOT / "benchmarks" / f"{name}.py"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # one, as in all tests
        monkeypatch.syspath_prepend(str(ROOT))
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        if hasattr(module, "PATH"):
            monkeypatch.setattr(module, "PATH", tmp_path / "figures.json")
        return module

    temporary = tempfile.tempdir
    yield load
    tempfile.tempdir = temporary


def run(module: Any, monkeypatch: Any, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(module.__file__), *words])
    assert module.main() in (None, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRIALS)
def test_a_script_runs(name, script, monkeypatch, tmp_path):
    trial, module = TRIALS[name], script(name)
    for size, value in trial.sizes.items():
        monkeypatch.setattr(module, size, getattr(module, size)[value] if isinstance(value, slice) else value)
    if "peers" in trial.words:
        for peer in ("pyhessian", "eigenthings"):
            python = tmp_path / "peers" / peer / "bin" / "python"
            python.parent.mkdir(parents=True)
            (tmp_path / "stand_in.py").write_text(STAND_IN)
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/stand_in.py" "$@"\n')
            python.chmod(0o755)
    run(module, monkeypatch, *trial.words)
    if trial.writes:
        assert json.loads((tmp_path / "figures.json").read_text())


@pytest.mark.thorough
def test_frozen_commands_are_recorded_and_compared(script, monkeypatch, tmp_path, capsys):
    module = script("frozen_commands")
    run(module, monkeypatch, "record", "once", "--only", "^exact-expression$")
    run(module, monkeypatch, "compare", "once", "once")
    assert "0 differences" in capsys.readouterr().out


def test_deflation_takes_the_vectors_of_a_run(script, monkeypatch, tmp_path):
    module = script("deflation")
    text = ["--sequences", "1", "--block", "16"]
    words = ["spectrum", SMALLEST, "--groups", "2", *text, "--top", "2", "--bottom", "1"]
    execute(parse([*words, "--tolerance", "0.1", "--density-probes", "0"])[1], tmp_path / "spectrum")
    words = ["--text", "builtin", "--tokenizer", "builtin", "--groups", "4", "--counts", "0,2", "--threads", "1"]
    run(module, monkeypatch, SMALLEST, "spectrum", *words, *text, *OUTPUT)
    assert [row["vectors"] for row in json.loads((tmp_path / "figures.json").read_text())["rows"]] == [0, 2]


@pytest.fixture
def folder(tmp_path):
    """A Llama with tied embeddings and grouped queries, 3,600 parameters, with a byte-level tokenizer, and a text."""
    path, text = tmp_path / "llama", tmp_path / "text.txt"
    text.write_text("the gradient of a mean is the mean of gradients, and its square is not. " * 8)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator([text.read_text()], trainers.BpeTrainer(vocab_size=64, show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_independent_figures_agree_and_a_wrong_one_is_seen(script, folder, monkeypatch, tmp_path, capsys):
    module = script("independent_figures")
    monkeypatch.setattr(module, "subprocess", Here)
    command, answers = module.measured, {}

    def kept(model, options, *more):
        return answers.setdefault((model == str(folder), *more[:-1]), command(model, options, *more))

    monkeypatch.setattr(module, "measured", kept)
    words = [str(folder), "--text", str(tmp_path / "text.txt"), "--block", "16", "--groups", "3", *OUTPUT]
    run(module, monkeypatch, *words)
    record = json.loads((tmp_path / "figures.json").read_text())
    assert len(record["rows"]) == 11
    assert record["loss_bit_equal"]
    assert "the same to the last bit" in capsys.readouterr().out
    monkeypatch.setattr(module, "measured", lambda model, _, *more: answers[model == str(folder), *more[:-1]])
    answers[False, "--run"]["decayed_norm_squared"] *= 1.001
    monkeypatch.setattr(sys, "argv", ["independent_figures.py", *words])
    assert module.main() == 1


def test_the_bias_of_a_mini_batch_is_drawn(script, monkeypatch, tmp_path):
    module = script("gradient_norm_bias")
    load_model(SMALLEST).model.save_pretrained(tmp_path / "demo" / "model")
    monkeypatch.setattr(module, "SIZES", (1, 2))
    monkeypatch.setattr(module, "GROUPS", 8)
    documents = load_corpus("builtin").documents[:2]
    monkeypatch.setattr(module, "load_corpus", lambda _: SimpleNamespace(documents=documents, boundaries=True))
    module.main("demo")
    row = json.loads((tmp_path / "figures.json").read_text())["rows"][0]
    assert row["naive"][0] > row["unbiased"][0], "a mini-batch adds its noise to what it reports"
    assert (tmp_path / "demo" / "gradient-norm-bias.html").stat().st_size > 10**6
