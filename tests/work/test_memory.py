import subprocess
import sys

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
