"""Files of any content: what they should be, or one line. A longer campaign is `benchmarks/hostile_files.py`.

Every example is damage from a seed (`tests/damage.py`); nothing else is random.
"""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.damage import VALUES, damage_ledger, damaged_bytes, damaged_json
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.trust import replayed_settings
from villani.commands.audit.witness import Claim, Witness, read_witness
from villani.commands.measure.settings import MeasureSettings
from villani.commands.pages import write_report
from villani.commands.paper.settings import read_settings
from villani.commands.running import execute
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.inputs.tokenizers import load_tokenizer
from villani.work import foreign
from villani.work.ledger import Ledger

TINY = "builtin:tiny?layers=1&width=8&context=32"
SMALL = [value for value in VALUES if not isinstance(value, int) or value < 100]  # sizes that a machine can hold


def damages(count):
    """Examples that are the same in every run."""
    fixture = HealthCheck.function_scoped_fixture
    quiet = settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=[fixture, HealthCheck.too_slow],
    )  # fmt: skip
    return lambda test: quiet(given(st.integers(0, 2**32).map(random.Random))(test))


def tried(work, *named):
    """What comes of reading a file; None where it is refused, in one line that names one of these."""
    try:
        return work()
    except InputError as error:
        told = str(error)
    assert "\n" not in told
    assert 0 < len(told) < 1000
    assert not named or any(str(name) in told for name in named), told
    return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of `villani measure`."""
    asked = MeasureSettings(model=TINY, groups=3, sequences=1, block=8, threads=1)
    return execute(asked, tmp_path_factory.mktemp("runs") / "measured")[0]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The bytes of a witness."""
    asked = AuditSettings(model="builtin:tiny", decay="hf").model_dump(mode="json")
    estimate = {"value": 1.0, "sem": 0.1, "n": 6, "interval": (0.8, 1.2), "status": "statistical"}
    figures = {"gradient_norm_squared": estimate, "laplacian": estimate}
    threshold = {"value": 1.0, "upper": 2.0, "level": 0.95, "norm_squared": 0.0, **figures}
    claim = Claim(
        settings=asked, parameter_checksum="0" * 64, orbit="a ↑ b ↓", threshold=threshold, scales=(2.0, 4.0),
        flat="shift", slab=("c", "d"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("witnesses") / "w.safetensors"
    Witness(claim, {"a": torch.ones(1), "b": -torch.ones(2, 1)}, {"b": torch.zeros(2, 2)}, {"c": torch.ones(3)}).write(
        path
    )
    return path.read_bytes()


@damages(250)
def test_witnesses(audited, tmp_path, rng):
    path = tmp_path / "w.safetensors"
    content = damaged_bytes(audited, rng)
    if rng.random() < 0.6:
        length = int.from_bytes(audited[:8], "little")
        header = json.loads(audited[8 : 8 + length])
        header["__metadata__"]["claim"] = damaged_json(header["__metadata__"]["claim"], rng)
        text = json.dumps(header) if rng.random() < 0.7 else damaged_json(json.dumps(header), rng)
        content = len(text.encode()).to_bytes(8, "little") + text.encode() + audited[8 + length :]
    path.write_bytes(content)
    read = tried(lambda: read_witness(path), path)
    asked = read and tried(lambda: replayed_settings(AuditSettings(replay=str(path)), read[0].claim.settings), path)
    if not asked:
        return
    witness = read[0]
    assert not asked.trust_remote_code
    assert asked.model.startswith(("builtin:", "config:"))
    assert asked.text == "builtin"
    assert all(t.dtype in (torch.float32, torch.float64) for t in (*witness.orbit.values(), *witness.flat.values()))


@damages(120)
def test_ledgers(run, tmp_path, rng):
    """A row that is given is the row that was kept."""
    shutil.rmtree(tmp_path / "r", ignore_errors=True)
    (tmp_path / "r").mkdir()
    rows = {f"group/{i}": {"a": np.arange(5.0) + i, "b": np.eye(2)} for i in range(3)}
    with Ledger(tmp_path / "r", {"seed": 0, "model": "x"}) as ledger:
        for key, row in rows.items():
            ledger.put(key, row, seconds=0.5, peak_memory_bytes=7)
    damage_ledger(tmp_path / "r" / "ledger.sqlite", rng)

    def read():
        with Ledger(tmp_path / "r", {"seed": 0, "model": "x"}) as ledger:
            return {key: ledger.get(key) for key in rows}, ledger.spent()

    kept = tried(read, "ledger.sqlite", "was begun with")
    if kept is None:
        return
    found, (seconds, peak, count) = kept
    for key, row in found.items():
        assert row is None or all(np.array_equal(row[name], rows[key][name]) for name in rows[key])
    assert (seconds, peak) == (0.5 * count, 7 * bool(count))


@damages(60)
def test_records(run, tmp_path, rng):
    content = (run / "records.json").read_bytes()
    (tmp_path / "records.json").write_bytes(
        damaged_json(content.decode(), rng).encode() if rng.random() < 0.7 else damaged_bytes(content, rng)
    )
    cost = (run / "cost.json").read_text()
    (tmp_path / "cost.json").write_text(damaged_json(cost, rng) if rng.random() < 0.2 else cost)
    (tmp_path / "report.html").unlink(missing_ok=True)
    page = tried(lambda: write_report(tmp_path), tmp_path)
    assert (tmp_path / "report.html").exists() == (page is not None)
    assert page is None or "<script>x</script>" not in page.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "m"
    load_model(TINY).model.save_pretrained(folder)
    words = {word: number for number, word in enumerate(["a", "b", "c"])}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    content = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@damages(60)
def test_checkpoints(folder, tmp_path, rng):
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    shutil.copytree(folder, tmp_path / "m")
    file = tmp_path / "m" / rng.choice(("config.json", "config.json", "model.safetensors"))
    if file.suffix == ".json" and rng.random() < 0.7:
        file.write_text(damaged_json(file.read_text(), rng, SMALL))
    else:
        file.write_bytes(damaged_bytes(file.read_bytes(), rng))
    loaded = tried(lambda: load_model(str(tmp_path / "m")))
    if loaded:
        assert all(bool(torch.isfinite(p).all()) for p in loaded.model.parameters())
        assert loaded.model.config._attn_implementation == "eager"


@damages(60)
def test_tokenizers(folder, tmp_path, rng):
    text = (folder / "tokenizer.json").read_text()
    content = damaged_json(text, rng, SMALL).encode() if rng.random() < 0.7 else damaged_bytes(text.encode(), rng)
    (tmp_path / "tokenizer.json").write_bytes(content)
    found = tried(lambda: load_tokenizer(str(tmp_path)).encode(["a b c", "a d"]), "tokenizer")
    assert found is None or all(ids.dtype == np.int64 for ids in found)


def test_a_tokenizer_without_a_token_for_the_unknown_is_one_line(folder):
    assert tried(lambda: load_tokenizer(str(folder)).encode(["a d"]), "UNK") is None


STUDY = """
temperature = [0.001]
[sweep]
model = "builtin:tiny?layers=1&width=8"
steps = 4
weight_decay = [0.1, 0.2]
seeds = 2
optimizers = ["sgd"]
learning_rate = {sgd = 0.1}
[landscape]
groups = 8
"""


@damages(150)
def test_studies(tmp_path, rng):
    path = tmp_path / "study.toml"
    content = STUDY.encode()
    if rng.random() < 0.6:
        line = rng.choice([text for text in STUDY.splitlines() if "=" in text])
        value = rng.choice(
            ["nan", "-inf", "1e400", "-1", "''", "[]", "{}", "[[[1]]]", "2" * 5000, "true", "1979-05-27"]
        )
        content = STUDY.replace(line, f"{line.split('=')[0]}= {value}").encode()
    if rng.random() < 0.5:
        content = damaged_bytes(content, rng)
    path.write_bytes(content)
    tried(lambda: read_settings(path, None))


@damages(60)
def test_vectors(tmp_path, rng):
    np.save(tmp_path / "v.npy", np.linspace(0, 1, 8))
    (tmp_path / "v.npy").write_bytes(damaged_bytes((tmp_path / "v.npy").read_bytes(), rng))
    found = tried(lambda: foreign.read_vector(tmp_path / "v.npy", "run again"), tmp_path / "v.npy")
    assert found is None or np.isfinite(found).all()
