"""The file of a witness: the same bytes, what is read back, and what no witness holds."""

import hashlib

import pytest
import torch

from tests.commands.audit.test_claims import claimed
from tests.records import text_record
from villani.commands.audit.witness import Claim, Witness, indexed, read_witness, text_checksum
from villani.errors import InputError
from villani.objective.parameters import ParameterSpace


@pytest.fixture
def witness():
    claim = Claim(
        settings={"seed": 3}, parameter_checksum="ab", orbit="up ↑ down ↓", threshold=claimed(), scales=(2.0, 4.0),
        flat="a common shift",
    )  # fmt: skip
    orbit = {"up": torch.ones(()), "down": torch.tensor([[-1.0], [0.0]])}
    return Witness(claim, orbit, {"up": torch.arange(3.0)}, {"bias": torch.ones(2, dtype=torch.float64)})


def test_what_is_written_is_read_back(witness, tmp_path):
    path = tmp_path / "witness.safetensors"
    witness.write(path)
    again, checksum = read_witness(path)
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert again.claim == witness.claim
    for kind in ("orbit", "moved", "flat"):
        ours, theirs = getattr(witness, kind), getattr(again, kind)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    for number in range(8):
        again.write(tmp_path / f"{number}")
        assert (tmp_path / f"{number}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"orbit": {}}, {"flat": {}}, {"flat": {"a": torch.ones(1), "b": torch.ones(1)}},
        {"orbit": {"up": torch.ones(1, dtype=torch.int64)}},
    ],
)  # fmt: skip
def test_tensors_and_claims_come_together(changes, witness, tmp_path):
    path = tmp_path / "w"
    Witness(**{"claim": witness.claim, "orbit": witness.orbit, "flat": witness.flat} | changes).write(path)
    with pytest.raises(InputError, match="not a witness") as error:
        read_witness(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 16, (10**9).to_bytes(8, "little") + b"{}"])
def test_other_files_are_no_witness(content, tmp_path):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(InputError, match="not a witness"):
        read_witness(tmp_path / "w")
    with pytest.raises(InputError, match="no such file"):
        read_witness(tmp_path / "absent")


def test_an_orbit_and_its_threshold_come_together():
    with pytest.raises(ValueError, match="come together"):
        Claim(settings={}, parameter_checksum="", orbit="up")


def test_a_texts_checksum_is_of_its_bytes_and_not_of_names():
    text = text_record()
    [source] = text.sources
    renamed = text.model_copy(update={"sources": [source.model_copy(update={"name": "elsewhere/x.txt"})]})
    other = text.model_copy(update={"sources": [source.model_copy(update={"md5": "00" * 16})]})
    assert text_checksum(renamed) == text_checksum(text) != text_checksum(other)


def test_tensors_are_found_by_name_and_have_to_fit():
    model = torch.nn.Linear(3, 2)
    space = ParameterSpace(model)
    assert indexed({"weight": torch.ones(3)}, space, whole=False).keys() == {0}
    assert indexed({"bias": torch.ones(2)}, space, whole=True).keys() == {1}
    for tensors, whole, words in (
        ({"gain": torch.ones(1)}, False, "'gain', which the model does not have"),
        ({"weight": torch.ones(3)}, True, "expected (2, 3)"),
        ({"weight": torch.ones(4)}, False, "expected (2, 3)"),
        ({"weight": torch.ones(5, 2, 3)}, False, "expected (2, 3)"),
        ({"bias": torch.tensor([1.0, torch.nan])}, True, "not finite"),
    ):
        with pytest.raises(InputError) as error:
            indexed(tensors, space, whole=whole)
        assert words in str(error.value)
