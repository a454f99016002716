"""`villani measure` and its neighbours on weights that are read from disk as they are used."""

import json
import re

import pytest

from tests.sharded import write
from villani.commands.audit.settings import AuditSettings
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import execute
from villani.commands.spectrum.settings import SpectrumSettings
from villani.errors import InputError
from villani.inputs.tokenizers import BUILTIN_VOCABULARY
from villani.work.progress import Progress


class Told(Progress):
    """What a command says it is at."""

    def __init__(self):
        self.stages = []

    def stage(self, text):
        self.stages.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("gpt-2", tmp_path_factory.mktemp("sharded") / "gpt-2", vocab_size=BUILTIN_VOCABULARY, n_layer=1)


def asked(folder, **options):
    return MeasureSettings.given(
        model=str(folder), tokenizer="builtin", groups=3, sequences=1, block=8, trace="taylor", shares=0, threads=1,
        **options,
    )  # fmt: skip


def record(run):
    return json.loads((run / "records.json").read_text())["records"][0]


def test_the_record_is_that_of_weights_in_memory_and_a_run_is_of_one_kind(folder, tmp_path):
    told = Told()
    execute(asked(folder, streamed="yes"), tmp_path / "streamed", progress=told)
    execute(asked(folder), tmp_path / "resident")
    one, other = record(tmp_path / "streamed"), record(tmp_path / "resident")
    assert "streamed from disk" in one["model"]["description"]
    assert one["provenance"]["parameter_checksum"] == other["provenance"]["parameter_checksum"]
    for name in ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace"):
        assert one[name]["value"] == pytest.approx(other[name]["value"], rel=1e-4, abs=1e-6)
    said = " ".join(told.stages)
    assert re.search(r"streaming .* of weights, read as they are used; a pass reads for \d", said)
    assert re.search(r"expecting roughly .*s, .* of memory", said)
    execute(asked(folder, streamed="yes", memory=64.0), tmp_path / "streamed")  # a limit moves no bits
    assert record(tmp_path / "streamed")["hessian_trace"] == one["hessian_trace"]
    with pytest.raises(InputError, match="streamed"):
        execute(asked(folder, streamed="no"), tmp_path / "streamed")


def test_too_little_memory_is_refused_in_a_line(folder, tmp_path):
    for settings in (
        asked(folder, memory=1e-3),
        AuditSettings.given(model=str(folder), tokenizer="builtin", sequences=1, block=8, memory=1e-3),
    ):
        with pytest.raises(InputError, match="are left of --memory") as caught:
            execute(settings, tmp_path / settings.name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"memory=0\.0: expected a number of GiB"):
        asked(folder, memory=0.0)


def test_a_spectrum_says_what_it_would_take(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VILLANI_MEMORY_GIB", "0.001")
    with pytest.raises(
        InputError, match=r"would take about .* of memory for θ and 6 vectors .* do not serve it"
    ) as caught:
        execute(SpectrumSettings.given(model=str(folder), tokenizer="builtin", block=8), tmp_path / "run")
    assert "\n" not in str(caught.value)
