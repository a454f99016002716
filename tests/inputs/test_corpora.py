import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.inputs.conftest import DATA, needs_data, refused
from villani.inputs.corpora import load_corpus, split_articles
from villani.inputs.tokenizers import load_tokenizer


def test_builtin_corpus_is_one_document_a_topic():
    corpus = load_corpus("builtin")
    assert len(corpus.documents) > 50
    assert sum(len(text.encode()) for text in corpus.documents) == corpus.sources[0].bytes


def test_files_are_read_as_they_are(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b, c.txt"
    first.write_bytes("Ψ\r\nλ ".encode())
    second.write_text("d")
    corpus = load_corpus(f"{first}, {first}")
    assert corpus.documents == ("Ψ\r\nλ ", "Ψ\r\nλ ")
    assert corpus.sources[0].model_dump() == {"name": "a.txt", "bytes": 7, "md5": "304cb93cff2c39828d8b6336693ddb8b"}
    assert load_corpus(str(second)).documents == ("d",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "white space only"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\xef\xbb\xbf \r\n", "white space only"),
        (b"caf\xe9 au lait", "not UTF-8 at byte 3: re-encode"),
        (b"PK\x03\x04\x00\x00", "NUL byte at offset 4"),
    ],
)
def test_unreadable_content_is_refused(tmp_path, content, match):
    (tmp_path / "text.txt").write_bytes(content)
    refused(match, load_corpus, str(tmp_path / "text.txt"))


def test_bad_corpus_specs_are_refused(tmp_path, no_data):
    refused("no such file, and not one of: builtin", load_corpus, str(tmp_path / "absent.txt"))
    refused("is a folder", load_corpus, str(tmp_path))
    refused("an empty file name", load_corpus, "")
    refused("set VILLANI_DATA or --data", load_corpus, "ptb")
    refused("unknown split 'dev'; known: train, valid, test", load_corpus, "ptb:dev")
    refused("no wikitext-103/valid.txt in the data folder", load_corpus, "wikitext", data=tmp_path)
    refused(r"expected hub:OWNER/NAME", load_corpus, "hub:a/b?spilt=train")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_forbidden_file_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "text.txt").chmod(0)
    refused("cannot be read: Permission denied", load_corpus, str(tmp_path / "text.txt"))


def test_hub_text_without_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(r"pip install 'villani\[hub\]'", load_corpus, "wikitext-103:train")


class Rows(dict):
    column_names = ("text", "label")


@pytest.fixture
def datasets(monkeypatch):
    """A stand-in for the optional package, with three rows of text, in offline mode."""
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return Rows(text=[" = A = \n", "", "b\n"], label=[1, 2, 3])

    stand_in = SimpleNamespace(load_dataset=load_dataset, config=SimpleNamespace(HF_HUB_OFFLINE=True), asked=asked)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return stand_in


def test_hub_rows_are_documents(datasets):
    corpus = load_corpus("hub:owner/name?config=c&split=validation")
    assert datasets.asked == [("owner/name", "c", "validation")]
    assert corpus.documents == (" = A = \n", "", "b\n")
    refused("no column 'body'; there are: text, label", load_corpus, "hub:owner/name?column=body")
    refused("does not hold text", load_corpus, "hub:owner/name?column=label")


def test_wikitext_train_comes_from_the_hub_and_is_cut_into_articles(datasets):
    assert load_corpus("wikitext-103:train").documents == (" = A = \n \nb\n",)
    assert datasets.asked == [("Salesforce/wikitext", "wikitext-103-raw-v1", "train")]


def test_unreachable_hub_is_told_before_datasets_retries(datasets, monkeypatch):
    import huggingface_hub

    def repo_info(self, *args, **kwargs):
        raise ConnectionError("no network")

    datasets.config.HF_HUB_OFFLINE = False
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    refused("cannot be reached", load_corpus, "hub:owner/name")
    assert datasets.asked == []


def test_articles_begin_at_headings_of_the_first_level_only():
    first = " \n = One = \n \n text \n \n = = Section = = \n \n = 1 / s and k = \n more \n"
    second = " \n = Two ( a = b ) = \n \n text \n"
    assert split_articles(first + second) == (first, second)
    assert split_articles("no heading\n") == ("no heading\n",)
    assert split_articles("preamble\n" + first) == ("preamble\n", first)


class TestRealText:
    pytestmark = needs_data

    @pytest.mark.parametrize(
        ("spec", "documents", "tokens"),
        [
            ("ptb:valid", 1, 92_830),
            ("ptb:test", 1, 105_243),
            ("wikitext", 60, 258_659),
            ("wikitext-103:test", 60, 295_877),
        ],
    )
    def test_gpt2_counts(self, spec, documents, tokens):
        data = Path(DATA)
        tokenizer = load_tokenizer("gpt2", data=data)
        corpus = load_corpus(spec, data=data)
        encoded = tokenizer.encode(corpus.documents)
        assert len(encoded) == documents
        # cutting WikiText into articles moves no token: headings are preceded by a line break of their own
        assert sum(map(len, encoded)) == tokens

    def test_ptb_train_is_the_standard_file(self):
        corpus = load_corpus("ptb", data=Path(DATA))
        assert corpus.sources[0].md5 == "f26c4b92c5fdc7b3f8c7cdcb991d8420"


@pytest.mark.parametrize("count", [60, 400])
def test_a_list_of_files_may_be_longer_than_any_path(tmp_path, count):
    folder = tmp_path / "a" / "b" / "c" / "d"
    folder.mkdir(parents=True)
    names = [folder / f"{number}.txt" for number in range(count)]
    for number, name in enumerate(names):
        name.write_text(f"text {number}")
    corpus = load_corpus(",".join(map(str, names)))
    assert corpus.documents == tuple(f"text {number}" for number in range(count))
    refused("missing.txt': no such file", load_corpus, ",".join(map(str, [*names, folder / "missing.txt"])))


def test_only_regular_files_of_a_size_that_fits_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("/dev/zero", "/dev/full", str(tmp_path / "pipe"), str(tmp_path / "link")):
        refused("is a device, pipe or socket", load_corpus, name)
    refused("no such path can be", load_corpus, "~nosuchuser/x")
    refused("no such path can be", load_corpus, "x" * 300)
    refused("no such path can be", load_corpus, "x/" * 1000)
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 2**42)  # sparse
    refused("would take about .* of memory", load_corpus, str(tmp_path / "large"))
