"""What a witness may ask for: names that lead nowhere, bounded work, and nothing of machine or trust."""

import pytest

from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.trust import replayed_settings, wishes
from villani.errors import InputError

STATED = AuditSettings(
    model="builtin:tiny", tokenizer="builtin", groups=12, sequences=4, block=32, probes=6, threads=1, decay="hf",
    temperature=10.0,
)  # fmt: skip


def wanting(**changes):
    return STATED.model_dump(mode="json") | changes


def replayed(path, claimed, **reader):
    """The settings that a reader with these options replays a witness of these settings with."""
    return replayed_settings(AuditSettings(replay=str(path / "w"), **reader), claimed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "/home/someone/model"}, "give it with --model"),
        ({"model": "../model"}, "give it with --model"),
        ({"model": "~/model"}, "give it with --model"),
        ({"model": "a/b/c"}, "give it with --model"),
        ({"model": "folder"}, "give it with --model"),
        ({"model": "owner/.."}, "give it with --model"),
        ({"text": "/etc/shadow"}, "text '/etc/shadow' (give it with --text)"),
        ({"text": "/etc/passwd,/etc/shadow"}, "give it with --text"),
        ({"text": "ptb.txt"}, "give it with --text"),
        ({"text": "builtin,/etc/shadow"}, "give it with --text"),
        ({"text": "hub:/etc"}, "give it with --text"),
        ({"text": "hub:../x"}, "give it with --text"),
        ({"text": "hub:text?split=train"}, "give it with --text"),
        ({"text": "hub:folder?split=train"}, "give it with --text"),
        ({"text": "ptb:../../etc"}, "give it with --text"),
        ({"tokenizer": "/etc"}, "give it with --tokenizer"),
        ({"tokenizer": "folder"}, "give it with --tokenizer"),
        ({"tokenizer": "hub:folder"}, "give it with --tokenizer"),
        ({"tokenizer": "builtin:x"}, "give it with --tokenizer"),
        ({"decay": "match:(a+)+$"}, "repeats too much"),
        ({"decay": "match:" + ".*" * 20 + "x"}, "repeats too much"),
        ({"groups": 10**9, "probes": 10**9}, "more tokens, probes or digits"),
        ({"seed": 2**100}, "more tokens, probes or digits"),
        ({"seed": -1}, "seed=-1"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"groups": 2}, "groups=2"),
        ({"probes": 0}, "probes=0"),
        ({"block": 1}, "block=1"),
        ({"dtype": "int8"}, "dtype"),
        ({"nonsense": 1}, "nonsense"),
        ({"replay": "/etc/passwd"}, "replay: Extra inputs"),
        ({"model_by_flag": "/etc"}, "model_by_flag: Extra inputs"),
        ({"model": None}, "model: Input should not be null"),
        ({"text": None}, "text: Input should not be null"),
        ({"seed": None}, "seed: Input should not be null"),
        ({"groups": []}, "groups"),
        ({"weight_decay": 1e308}, "weight_decay=1e+308"),
        ({"temperature": 1e-320}, "temperature=9.99989e-321"),
    ],
)
def test_a_witness_opens_nothing_and_asks_for_little(tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "ptb.txt").write_text("text")
    with pytest.raises(InputError) as caught:
        replayed(tmp_path, wanting(**changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "config:gpt2?layers=1"},
        {"model": "gpt2"},
        {"model": "EleutherAI/gpt-neo-125m", "tokenizer": None},
        {"text": "ptb"},
        {"text": "wikitext-103:test", "tokenizer": "gpt2"},
        {"text": "hub:owner/data?split=train"},
        {"decay": "match:^(a\\.weight|b\\.c\\.weight)$"},
    ],
)
def test_names_that_lead_to_nothing_of_the_readers_are_followed(tmp_path, changes):
    asked = replayed(tmp_path, wanting(**changes))
    assert all(getattr(asked, name) == value for name, value in changes.items())


def test_machine_and_trust_are_the_readers_alone(tmp_path):
    asked = wanting(trust_remote_code=True, device="cuda:7", threads=10**9, micro_tokens=10**9)
    found = replayed(tmp_path, asked, seed=3)
    assert (found.trust_remote_code, found.device, found.threads, found.micro_tokens) == (False, "cpu", None, 512)
    assert found.seed == 3
    assert "asks to run code, which no witness may" in wishes(asked)
    with pytest.raises(InputError, match="only for a model that you name yourself"):
        replayed(tmp_path, asked, trust_remote_code=True)
    given = {"model": "/mine", "text": "/my.txt"}
    found = replayed(tmp_path, asked, **given, trust_remote_code=True)
    assert (found.model, found.text, found.trust_remote_code) == ("/mine", "/my.txt", True)
    with pytest.raises(InputError, match="with another seed they are other data"):
        replayed(tmp_path, wanting(finite=True), seed=3)


def test_an_adapter_that_only_a_witness_names_is_no_folder_of_the_readers(tmp_path):
    (tmp_path / "adapter").mkdir()
    wanted = wanting(model="gpt2", adapter=str(tmp_path / "adapter"))
    assert f"adapter {str(tmp_path / 'adapter')!r}" in wishes(wanted)
    with pytest.raises(InputError, match=r"the witness names adapter .* \(give it with --adapter\)"):
        replayed(tmp_path, wanted)
    assert replayed(tmp_path, wanted, adapter="/mine").adapter == "/mine"
    assert replayed(tmp_path, wanted, model="/merged").adapter is None  # whoever names the model names the whole of it
    assert replayed(tmp_path, wanting(model="gpt2", adapter="owner/lora")).adapter == "owner/lora"
    assert "adapter" not in wishes(wanting())
