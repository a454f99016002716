"""Processes that decide together: one answer for all, and whatever goes wrong in one is told to all, once."""

from functools import partial

import numpy as np
import pytest
import torch

from tests.integrations.ranks import run_ranks
from villani.errors import InputError
from villani.integrations.processes import Processes, one_line

SIZE, SECONDS = 3, 30.0


def told_by(block):
    """The error that a block ends with, in words; None where it ends well."""
    try:
        block()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def exchanges(rank, size):
    processes = Processes(range(size))
    own = np.array([[1e16, 1.0, -1e16][rank], 1.0 + rank])
    vector = torch.arange(4, dtype=torch.float64) * 10**rank
    added = processes.added(vector)
    processes.agree({"seed": 1})
    return {
        "place": (processes.rank, processes.size, processes.main, processes.several),
        "decision": processes.broadcast([rank == 0, (rank, "asked")]),
        "gathered": [array.tolist() for array in processes.gathered(own)],
        "summed": processes.summed(own).tolist(),
        "added": (added is vector, added.tolist()),
        "differs": [
            told_by(partial(processes.agree, {"seed": 1, "threads": int(rank == other)})) for other in range(size)
        ],
        "goes on": processes.broadcast(rank),
    }


def test_the_decision_is_that_of_process_0_and_sums_have_the_same_bits_everywhere(tmp_path):
    results = run_ranks(SIZE, exchanges, tmp_path, seconds=SECONDS)
    line = "InputError: process {} has threads = {}, process 0 has {}: start them alike"
    for rank, result in enumerate(results):
        assert result == {
            "place": (rank, SIZE, rank == 0, True),
            "decision": [True, [0, "asked"]],
            "gathered": [[1e16, 1.0], [1.0, 2.0], [-1e16, 3.0]],
            "summed": [0.0, 6.0],  # (1e16 + 1) − 1e16, in order of rank: any other order gives 1
            "added": (True, [0.0, 111.0, 222.0, 333.0]),
            "differs": [line.format(1, 0, 1), line.format(1, 1, 0), line.format(2, 1, 0)],
            "goes on": 0,
        }


def failures(rank, size):
    """What every process hears of errors at all kinds of places, and whether all are in step afterwards."""
    processes = Processes(range(size))
    told = []

    def fail(guilty, error):
        if rank in guilty:
            raise error

    def plain(guilty, error):
        with processes.together():
            fail(guilty, error)

    def before_an_exchange(guilty, error):
        with processes.together():
            fail(guilty, error)
            processes.summed(np.ones(1))

    def before_ready(guilty, error):
        with processes.together():
            fail(guilty, error)
            processes.ready()

    def before_a_long_vector(guilty, error):
        with processes.together():
            fail(guilty, error)
            processes.added(torch.ones(3))

    def inner(guilty, error):
        with processes.together():
            with processes.together():
                fail(guilty, error)
            processes.broadcast("never")

    def outside_of_an_inner(guilty, error):
        """Others are in an inner block when they hear."""
        with processes.together():
            fail(guilty, error)
            with processes.together():
                processes.gathered(np.ones(2))

    def while_cleaning_up(guilty, error):
        """An error that comes while one that was told is handled stays where it is."""
        with processes.together():
            try:
                with processes.together():
                    fail(guilty, error)
            finally:
                if rank == 1:
                    raise OSError("disk")

    def differing(guilty, error):
        with processes.together():
            processes.agree({"word": "odd" if rank in guilty else "even"})

    ways = [
        plain, before_an_exchange, before_ready, before_a_long_vector, inner, outside_of_an_inner, while_cleaning_up,
        differing,
    ]  # fmt: skip
    for way in ways:
        for guilty in ([0], [2], [1, 2]):
            for error in (ZeroDivisionError("of\n two  lines"), InputError("bad group")):
                line = told_by(partial(way, guilty, error))
                told.append((way.__name__, guilty, type(error).__name__, line, processes.broadcast(len(told))))
    return told


def test_an_error_of_any_process_is_told_to_all_once_and_they_stay_in_step(tmp_path):
    results = run_ranks(SIZE, failures, tmp_path, seconds=SECONDS)
    words = {"ZeroDivisionError": "ZeroDivisionError: of two lines", "InputError": "bad group"}
    for rank, told in enumerate(results):
        assert len(told) == 8 * 3 * 2
        for number, (way, guilty, kind, line, counted) in enumerate(told):
            assert counted == number  # process 0's count: nothing was heard twice, and nobody waits
            if way == "differing":
                assert line.startswith("InputError: process ")
                assert "has word = " in line
            elif way == "while_cleaning_up" and rank == 1:
                assert line == "OSError: disk"
            else:  # of several the first by rank, whoever was quicker
                assert line == f"InputError: process {guilty[0]}: {words[kind]}", way


def in_part(rank, size):
    if rank == 1:
        return None
    processes = Processes([2, 0])
    return processes.rank, processes.size, processes.broadcast(f"of {rank}"), processes.summed(np.array([1.0 + rank]))


def test_processes_outside_of_the_group_need_not_know(tmp_path):
    first, outside, last = run_ranks(SIZE, in_part, tmp_path, seconds=SECONDS)
    assert outside is None
    assert first == (0, 2, "of 0", 4.0)
    assert last == (1, 2, "of 0", 4.0)


@pytest.mark.parametrize("ranks", [(), (5,)])
def test_one_process_alone_needs_no_group_and_keeps_its_errors(ranks):
    alone = Processes(ranks)
    assert (alone.rank, alone.size, alone.main, alone.several) == (0, 1, True, False)
    array, tensor = np.arange(3.0), torch.arange(3.0)
    assert alone.summed(array) is array
    assert alone.added(tensor) is tensor
    assert [a.tolist() for a in alone.gathered(array)] == [[0.0, 1.0, 2.0]]
    assert alone.broadcast({"due": True}) == {"due": True}
    alone.agree({"seed": 1})
    alone.ready()
    with pytest.raises(ZeroDivisionError, match="mine"), alone.together():
        raise ZeroDivisionError("mine")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("two\n  lines"), "two lines"),
        (ValueError("a\n\tb"), "ValueError: a b"),
        (MemoryError(), "MemoryError: "),
        (KeyError("name"), "KeyError: 'name'"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 300),
    ],
)
def test_an_error_in_one_line(error, line):
    assert one_line(error) == line
