"""Tensors by the headers of their files: names, kinds, shapes; damage; and what other formats are told."""

import pytest
import safetensors.torch
import torch

from tests.inputs.conftest import refused
from villani.inputs.stored import gguf_remedy, other_formats, stored_tensors


@pytest.fixture
def folder(tmp_path):
    files = {
        "1": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)},
        "2": {"c": torch.zeros(0, 4), "d": torch.ones(1, dtype=torch.int8)},
    }
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_headers_tell_names_kinds_and_shapes(folder):
    stored = stored_tensors(folder, "model", ["1.safetensors", "2.safetensors"])
    assert {name: (s.file, s.shape, s.dtype) for name, s in stored.items()} == {
        "a": ("1.safetensors", (2, 3), torch.float32), "b": ("1.safetensors", (2,), torch.bfloat16),
        "c": ("2.safetensors", (0, 4), torch.float32), "d": ("2.safetensors", (1,), None),
    }  # fmt: skip


def test_values_are_copies(folder):
    value = stored_tensors(folder, "model", ["1.safetensors"])["a"].read(folder)
    assert value.tolist() == [[0, 1, 2], [3, 4, 5]]
    content = bytearray((folder / "1.safetensors").read_bytes())
    content[-40:] = bytes(40)
    (folder / "1.safetensors").write_bytes(content)
    assert value.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("cut", [4, 20, 0.9])
def test_truncated_files_are_found_without_reading_tensors(folder, cut):
    file = folder / "1.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: cut if isinstance(cut, int) else int(cut * len(content))])
    refused("1.safetensors is truncated or corrupt", stored_tensors, folder, "model", ["1.safetensors"])


def test_a_tensor_in_two_files_is_refused(folder):
    safetensors.torch.save_file({"a": torch.ones(1)}, folder / "3.safetensors")
    files = ["1.safetensors", "3.safetensors"]
    refused("model: a is in 1.safetensors and in 3.safetensors", stored_tensors, folder, "model", files)


def test_other_formats_are_named_with_a_remedy(tmp_path):
    assert other_formats(tmp_path) == "no such file"
    (tmp_path / "q.gguf").touch()
    assert gguf_remedy("q.gguf") in other_formats(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert other_formats(tmp_path) == "only pytorch_model.bin, a pickle"
