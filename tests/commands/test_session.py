"""Signals and streams of a process: one line, an exit code, no traceback. Children import no torch, to be quick."""

import os
import signal
import subprocess
import sys

import pytest

WAITS = "import time; print('ready', flush=True); time.sleep(60)"


def child(body, **options):
    """A process that runs the lines of `body` as a command."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"from villani.commands.session import run\ndef command():\n{lines}\nrun(command)"
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    for name in ("TORCHELASTIC_RUN_ID", "RANK"):
        environment.pop(name, None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes)


def default_signals():
    """Whoever runs the tests may ignore them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, ""), (signal.SIGTERM, " by SIGTERM"), (signal.SIGHUP, " by SIGHUP")],
)
@pytest.mark.parametrize(
    "body",
    [
        WAITS,
        f"try:\n    {WAITS}\nexcept KeyboardInterrupt:\n    raise ImportError('half imported')",  # as a library may
        f"try:\n    {WAITS}\nexcept KeyboardInterrupt:\n    raise SystemError('error return without exception set')",
    ],
)
def test_signals_end_in_the_line_of_ctrl_c(number, words, body):
    process = child(body, preexec_fn=default_signals)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert err == f"villani: interrupted{words}; what was finished is kept, and the same command resumes\n"
    assert process.returncode == 1


def test_a_second_signal_ends_at_once():
    process = child(
        f"try:\n    {WAITS}\nexcept KeyboardInterrupt:\n    print('busy', flush=True); time.sleep(60)",
        preexec_fn=default_signals,
    )
    for word in ("ready\n", "busy\n"):
        assert process.stdout.readline() == word
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1
    process.communicate()


def test_a_signal_that_was_ignored_stays_so():
    process = child(
        "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nprint('went on')",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.communicate(timeout=30)[0] == "went on\n"
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("from villani.errors import InputError\nraise InputError('a\\nb \\x1b[2Jc')", 2, "villani: a b �[2Jc\n"),
        ("open('/nowhere/x')", 2, "villani: /nowhere/x: no such file or directory\n"),
        ("open('/tmp')", 2, "villani: /tmp: is a directory\n"),
        (
            "raise OSError(28, 'No space left on device')",
            1,
            "villani: cannot write the output: no space left on device; ",
        ),
        ("raise MemoryError", 2, "villani: not enough memory: choose a smaller model"),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: x')", 2, "villani: not enough memory"),
        ("raise ImportError('libx.so: failed to map segment from shared object')", 2, "villani: not enough memory"),
        ("return 1", 1, ""),
    ],
)
def test_what_goes_wrong_is_one_line(body, code, line):
    process = child(body)
    _, err = process.communicate(timeout=30)
    assert err.startswith(line)
    assert len(err.splitlines()) <= 1
    assert process.returncode == code


def test_an_error_that_is_a_bug_keeps_its_traceback():
    _, err = child("raise KeyError('x')").communicate(timeout=30)
    assert "Traceback" in err


def test_full_closed_and_absent_streams_end_cleanly(tmp_path):
    with open("/dev/full", "w") as full:
        process = child("print('x')", stdout=full)
        assert "no space left on device; what was finished is kept" in process.communicate(timeout=30)[1]
        assert process.returncode == 1
        process = child("from villani.errors import InputError\nprint('y')\nraise InputError('x')", stderr=full)
        assert process.communicate(timeout=30)[0] == "y\n"
        assert process.returncode == 2
    read, write = os.pipe()
    os.close(read)
    process = child("print('x\\n' * 100000)", stdout=write)  # | head -1
    os.close(write)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path, closed):
    """Else what a library prints would be written into a ledger."""
    body = f"""
import os, sys
with open({str(tmp_path / "number")!r}, "w") as file:
    print("stray"); sys.stdout.flush(); print("stray", file=sys.stderr, flush=True); os.write(2, b"stray")
    file.write(str(file.fileno() > 2))
""".strip()
    process = child(body, preexec_fn=lambda: [os.close(number) for number in closed])
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert (tmp_path / "number").read_text() == "True"
