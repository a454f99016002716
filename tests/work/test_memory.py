import ctypes
import subprocess
import sys

import pytest

from villani.work import memory

PROGRAM = """
from types import SimpleNamespace
from villani.work.memory import peak_memory
import sys
cpu = SimpleNamespace(type="cpu")
before = peak_memory(cpu)
block = b"x" * (64 << 20)
during = peak_memory(cpu)
del block
assert "torch" not in sys.modules
print(during - before, peak_memory(cpu) - before)
"""


def test_the_peak_is_of_this_process_and_stays():
    """In bytes, of a process that begins with little: 64 MiB are seen, and not forgotten when they are freed."""
    output = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout
    during, after = map(int, output.split())
    assert 60 << 20 < during < 80 << 20
    assert after > 60 << 20  # kernels count pages by thread: the two are not equal to the page


FREED = """
import sys
from pathlib import Path
from villani.work.memory import give_back

def resident():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])

blocks = [bytearray(b"x") * 100_000 for _ in range(1000)]  # below what the C library maps by itself
kept = blocks[::50]
last = blocks[-1]
before = resident()
del blocks
freed = resident()
give_back()
print(before - freed, before - resident(), sum(len(b) for b in kept))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_freed_pages_between_others_in_use_go_back():
    """95 MB of 100 are freed, and the C library keeps most of them until it is asked."""
    output = subprocess.run([sys.executable, "-c", FREED], check=True, capture_output=True, text=True).stdout
    kept_back, given, _ = map(int, output.split())
    assert given > 85e6
    assert given - kept_back > 10e6


def test_little_that_was_freed_is_left_alone(monkeypatch):
    """Taking pages again costs more than having them; what is not known to be little is given back."""
    asked = []
    monkeypatch.setattr(memory, "of_glibc", lambda name: asked.append)
    memory.give_back(memory.LARGE - 1)
    assert asked == []
    memory.give_back(memory.LARGE)
    memory.give_back()
    assert asked == [0, 0]


HOLES = """
import sys
from pathlib import Path
import torch
from villani.work.memory import map_large

def pages(key):
    return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])

if sys.argv[1] == "yes":
    map_large()
torch.empty(28 << 20, dtype=torch.uint8)  # from here on the C library takes such from its heap
kept, before = [], (pages("VmRSS:"), pages("VmData:"))
for layer in range(30):  # two tensors of a layer, and what is left of them, a little less than one
    one, two = torch.ones(4 << 20), torch.ones(4 << 20)
    kept.append(one[:20_000].clone())
    del one, two
    kept.append(torch.ones(20_000))
print(pages("VmRSS:") - before[0], pages("VmData:") - before[1], 4 * sum(t.numel() for t in kept))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_tensors_that_come_and_go_leave_no_holes():
    """30 layers of two tensors of 16 MiB, of which 80 kB stay each: no more is taken than one layer and what stays."""
    taken = {}
    for way in ("yes", "no"):
        words = [sys.executable, "-c", HOLES, way]
        taken[way] = [int(n) for n in subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()]
    resident, counted, kept = taken["yes"]
    assert max(resident, counted) < kept + (40 << 20)
    assert taken["no"][1] > 2 * counted  # what it is for


FORGOTTEN = """
from villani.work.memory import forget_peak, peak_memory
block = b"x" * (64 << 20)
del block
before = peak_memory()
forget_peak()
print(before - peak_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there can a process forget")
def test_a_peak_can_be_forgotten():
    output = subprocess.run([sys.executable, "-c", FORGOTTEN], check=True, capture_output=True, text=True).stdout
    assert int(output) > 60 << 20
