"""What a process of the command line does about its streams and signals, and the one line that it ends with.

SIGTERM and SIGHUP are Ctrl-C: they stop the work where it is, and what was finished is kept. Whatever a library makes
of an interruption that comes while it is imported or computes, the end is the same line. A second signal ends at once:
files are replaced whole and units are transactions, so that no moment is a bad one.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from villani.errors import InputError, LostProcess, out_of_memory

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_LONGEST = 1000  # characters of a line


def run(command: Callable[[], int | None]) -> None:
    """Call a command, turn what goes wrong into one line on stderr, and exit: 0 done, 2 bad input, 1 anything else."""
    _open_streams()
    with _listening() as received:
        try:
            code = _outcome(command)
        except KeyboardInterrupt:
            received.append(signal.SIGINT)
        except BaseException:
            if not received:
                raise
        if received:
            _say(f"interrupted{_by(received[0])}; what was finished is kept, and the same command resumes")
            code = 1
        code = _flushed(code)
    sys.exit(code)


def _outcome(command: Callable[[], int | None]) -> int:
    try:
        return command() or 0
    except InputError as error:
        return _refused(str(error))
    except LostProcess as error:
        _say(str(error))
        return 1
    except BrokenPipeError:  # whoever read the output has gone
        return 1
    except MemoryError:
        return _refused(_too_large(""))
    except OSError as error:
        if error.filename is None:
            _say(f"cannot write the output: {_reason(error)}; what was finished is kept")
            return 1
        return _refused(f"{error.filename}: {_reason(error)}")
    except (RuntimeError, ImportError) as error:
        if not out_of_memory(error):
            raise
        return _refused(_too_large(str(error).splitlines()[0]))


def _refused(text: str) -> int:
    _say(text)
    return 2


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _too_large(reason: str) -> str:
    words = "not enough memory: choose a smaller model, fewer --groups, --micro-tokens or --batch, or a higher ulimit"
    return f"{words} ({reason[:100]})" if reason else words


def _say(text: str) -> None:
    """One line on stderr, from one process; nothing of a file that others made moves a cursor."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        return
    line = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    if len(line) > _LONGEST:  # of a name that somebody made long; the end says what to do
        line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"villani: {line}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """The signals that came while the block ran; one that was ignored before, as under nohup, stays so."""
    received: list[int] = []

    def interrupted(number: int, _frame: FrameType | None) -> None:
        if received:
            os._exit(1)
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: no signal comes there
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, interrupted)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _by(number: int) -> str:
    return "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"


def _open_streams() -> None:
    """Give closed standard streams the null device: the next file would take their number, and their output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        with contextlib.suppress(AttributeError):  # a stream of somebody else's
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _flushed(code: int) -> int:
    """The exit code once everything is written; a stream that takes no more is let go of."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if name == "stdout":
                if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                    _say(f"cannot write the output: {_reason(error)}; what was finished is kept")
                code = code or 1
    return code
