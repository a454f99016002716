import numpy as np
import pytest

from villani.errors import InputError
from villani.work import foreign
from villani.work.records import Record


def test_what_goes_wrong_in_reading_is_one_line_and_keeps_its_cause():
    with (
        pytest.raises(InputError, match=r"^x.json: KeyError 'a'; delete it$") as caught,
        foreign.reading("x.json", "delete it"),
    ):
        {}["a"]
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(InputError, match="own words"), foreign.reading("x", "y"):
        raise InputError("own words")
    with pytest.raises(KeyboardInterrupt), foreign.reading("x", "y"):
        raise KeyboardInterrupt
    long = "a\nb" * 1000
    with pytest.raises(InputError) as caught, foreign.reading("x", "y"):
        raise ValueError(long)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands there twice"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_json_that_is_refused(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        foreign.read_json(tmp_path / "x.json", "delete it")
    assert str(tmp_path / "x.json") in str(caught.value)
    assert "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toml_that_is_refused(tmp_path):
    (tmp_path / "x.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        foreign.read_toml(tmp_path / "x.toml", "delete it")
    (tmp_path / "x.toml").write_text("a = [1]\nb = {c = 2}")
    assert foreign.read_toml(tmp_path / "x.toml", "") == {"a": [1], "b": {"c": 2}}


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert foreign.read_content(tmp_path / "x", 5, "") == b"12345"
    for path, words in ((tmp_path / "x", "larger than 4 bytes"), (tmp_path, "not a file"), (tmp_path / "y", "no such")):
        with pytest.raises(InputError, match=words):
            foreign.read_content(path, 4, "delete it")


@pytest.mark.parametrize(
    "found",
    [np.array([1.0, np.nan]), np.array([1, 2]), np.array([1 + 2j]), np.array(["a"]), np.zeros(2, dtype="f4,f4")],
)
def test_only_vectors_of_finite_floats_are_vectors(tmp_path, found):
    np.save(tmp_path / "x.npy", found)
    with pytest.raises(InputError, match="not a vector"):
        foreign.read_vector(tmp_path / "x.npy", "run again")
    for content in (b"", b"\x93NUMPY", (tmp_path / "x.npy").read_bytes()[:-1]):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(InputError, match="not a vector"):
            foreign.read_vector(tmp_path / "x.npy", "run again")
    np.save(tmp_path / "x.npy", np.array([[1.0], [2.0]]))
    assert foreign.read_vector(tmp_path / "x.npy", "").tolist() == [1.0, 2.0]


def test_what_does_not_fit_is_told_by_its_place():
    class Point(Record):
        x: float

    with pytest.raises(InputError, match="x: Input should be a finite number"):
        foreign.validated(Point, {"x": float("inf")}, "f.json", "mend it")
    assert foreign.validated(Point, {"x": 1}, "f.json", "mend it").x == 1


@pytest.mark.parametrize(
    "text", ["(", "(" * 1500, "(" * 900 + ")" * 900, "a" * 2001, "a{99999999999}", "(?P<1>a)", "[z-a]"]
)
def test_what_is_no_regular_expression_is_one_short_line(text):
    with pytest.raises(InputError) as caught:
        foreign.pattern_of(text, "decay 'x'")
    assert str(caught.value).startswith("decay 'x'")
    assert len(str(caught.value)) < 250


def test_a_regular_expression_is_what_python_makes_of_it():
    assert foreign.pattern_of(r"h\.[02]\.", "decay").search("x.h.2.w")
    assert not foreign.pattern_of(r"h\.[02]\.", "decay").search("x.h.1.w")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_is_short_is_no_fault_of_the_file(error):
    with (
        pytest.raises(InputError, match="x: not enough memory for it: give a smaller one"),
        foreign.reading("x", "mend it"),
    ):
        raise error
