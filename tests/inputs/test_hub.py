"""Hugging Face's side: one call, its errors in a line, silence, and no request where none may go out."""

import subprocess
import sys
import warnings

import pytest
import torch
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

from tests.inputs.conftest import TINY, refused
from villani.inputs.hub import closed, hub_files, looks_like_path, quiet
from villani.inputs.models import load_model


@pytest.fixture
def folder(tmp_path):
    load_model(TINY).model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Calls to the hub, which raises what a test puts in `error`."""
    import huggingface_hub

    class Hub:
        error = ConnectionError("no network")
        calls = 0

    def repo_info(self, *args, timeout, **kwargs):
        Hub.calls += 1
        assert timeout <= 5
        raise Hub.error

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    return Hub


def test_unreachable_hub_is_told_after_one_call(hub):
    refused(
        "neither a local folder nor in the local cache.*no network.*give a folder", load_model, "villani-tests/absent"
    )
    assert hub.calls == 1


def test_unknown_hub_model_is_told(hub):
    from huggingface_hub.errors import RepositoryNotFoundError

    hub.error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    refused("no such model on the hub", load_model, "villani-tests/absent")


def test_cached_hub_model_needs_no_network(hub, folder, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    loaded = load_model("gpt2")
    assert hub.calls == 0
    assert loaded.tokenizer == "hub:gpt2"  # 'gpt2' alone is the data folder's
    assert loaded.record.description == "weights of hub model gpt2 (safetensors)"


def test_offline_mode_is_honoured():
    code = "from villani.inputs.models import load_model\nload_model('villani-tests/absent')"
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "cannot be reached" in result.stderr
    assert "offline" in result.stderr.lower()


def test_loading_is_silent_and_restores_the_verbosity(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = load_model(str(folder)).model
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("gpt2", False), ("owner/name", False), ("./name", True), ("/a", True), ("~/a", True), ("a/b/c", True),
        ("model.safetensors", True), ("name.pt", True),
    ],
)  # fmt: skip
def test_what_can_only_be_a_path(spec, path):
    assert looks_like_path(spec) == path


def test_a_name_that_is_no_hub_id_is_refused_without_a_call():
    refused("neither a local folder nor a hub id", hub_files, "not a name/of/anything")


def test_silence_and_closure_end_whatever_happens():
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    offline = constants.HF_HUB_OFFLINE

    def fail():
        with quiet(), closed():
            assert constants.HF_HUB_OFFLINE
            assert not transformers_logging.is_progress_bar_enabled()
            with warnings.catch_warnings(record=True) as told:
                warnings.warn("nobody reads this", stacklevel=1)
            assert not told
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert offline == constants.HF_HUB_OFFLINE
