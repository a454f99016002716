"""Files of a folder: names and links that lead out of it, devices, and JSON that says a thing twice."""

import os
from pathlib import Path

import pytest

from tests.inputs.conftest import refused
from villani.inputs.folders import inside, is_regular, json_object, local_path, shortened


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "deep").mkdir(parents=True)
    for name in ("a.json", "deep/b.json"):
        (tmp_path / "model" / name).write_text('{"x": 1}')
    (tmp_path / "secret.json").write_text("{}")
    return tmp_path / "model"


def test_files_of_the_folder_are_found_also_through_its_own_links(folder):
    (folder / "link.json").symlink_to(folder / "deep" / "b.json")
    for name in ("a.json", "deep/b.json", "link.json"):
        assert json_object(folder, name) == {"x": 1}
    (folder.parent / "alias").symlink_to(folder)
    assert inside(folder.parent / "alias", "a.json").read_text() == '{"x": 1}'


@pytest.mark.parametrize(
    "name", ["../secret.json", "deep/../../secret.json", "/etc/hostname", "link", "deep/up/secret.json"]
)
def test_nothing_leads_out(folder, name):
    (folder / "link").symlink_to(folder.parent / "secret.json")
    (folder / "deep" / "up").symlink_to(folder.parent)
    refused("leads out of the folder|no such file can be|not a regular file", inside, folder, name)


def test_the_hubs_cache_may_link_to_its_blobs(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text('{"y": 2}')
    (snapshot / "config.json").symlink_to(blobs / "1")
    assert json_object(snapshot, "config.json") == {"y": 2}


def test_what_is_no_file_is_not_opened(folder):
    os.mkfifo(folder / "pipe")
    (folder / "round").symlink_to(folder / "round")
    for name in ("pipe", "deep", "absent", "round", "nul\0", "x" * 3000):
        refused("not a regular file|no such file can be|leads out", inside, folder, name)
    assert is_regular(folder / "a.json")
    assert not is_regular(Path("/dev/null"))


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"a": 1, "a": 2}', "the key 'a' is there twice"), ('{"a": NaN}', "NaN is no number"), ("[1]", "expected a JSON"),
     ("{", "cannot be read as JSON"), ("[" * 100_000, "too deeply nested"), ('{"a": {"b": 1, "b": 1}}', "'b'")],
)  # fmt: skip
def test_json_that_is_not_plain_is_refused(folder, text, words):
    (folder / "a.json").write_text(text)
    refused(words, json_object, folder, "a.json")


def test_paths_of_users():
    assert local_path("~/x", "model") == Path.home() / "x"
    refused("no such path can be", local_path, "~no-such-user-here/x", "model")
    refused("more than 256 folders", local_path, "/".join("d" * 300), "model")
    assert shortened("x" * 200) == "x" * 40 + "…" + "x" * 40
    assert shortened("short") == "short"
