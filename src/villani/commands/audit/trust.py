"""What a witness may ask for: its settings are data from a stranger, and trust comes from the command line alone.

A witness says which model and text it is of. Followed are names that lead to nothing of the reader's: shapes with
random weights, corpora by name, ids on the hub, whose checkpoints run no code. Folders and files are opened only where
the one who replays names them. Device, threads and leave to run code are never the witness's to choose.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from villani.bounds import check_bounds
from villani.commands.audit.run import AuditSettings
from villani.errors import InputError
from villani.work import foreign

_OWN = {
    "device",
    "threads",
    "micro_tokens",
    "trust_remote_code",
    "allow_unused",
}  # the reader's to choose
_CORPUS = re.compile(r"builtin|ptb(:\w+)?|wikitext(-103)?(:\w+)?")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")  # owner/name, or a name alone
_WORK = 1 << 34  # tokens times probes that a replay takes on at most
_REPEATS = 4  # in a pattern that comes from a file: Python's matcher may take time exponential in them


def replayed_settings(
    path: Path, claimed: Mapping[str, object], given: Mapping[str, str], own: Mapping[str, Any], seed: int | None
) -> AuditSettings:
    """The settings to replay with.

    Args:
        path: of the witness.
        claimed: the settings in it.
        given: model, text and tokenizer, as far as the one who replays names them.
        own: device, threads, micro_tokens and trust_remote_code of the one who replays.
        seed: instead of the witness's, if not None.

    Raises:
        InputError: they are no settings of an audit, ask for more than a replay does, or name what must be given.
    """
    changed = {name: value for name, value in claimed.items() if name not in _OWN} | dict(given) | dict(own)
    remedy = "give the witness.safetensors of an audit"
    settings = foreign.validated(AuditSettings, changed, f"--replay {path}: settings", remedy)
    with _of(path):
        settings.check()
    if seed is not None and seed != settings.seed and settings.finite:
        raise InputError(
            f"--seed {seed}: the witness's groups are its whole data; with another seed they are other data"
        )
    work = settings.groups * settings.sequences * settings.block * settings.probes
    if work > _WORK or settings.seed >= 1 << 62:
        raise InputError(f"--replay {path}: settings: more tokens, probes or digits than a replay takes on; {remedy}")
    with _of(path):
        check_bounds(settings)
    _check_pattern(path, settings.decay)
    refused = [
        f"{name} {foreign.clipped(repr(value))} (give it with --{name})"
        for name, value in (("model", settings.model), ("text", settings.text), ("tokenizer", settings.tokenizer))
        if name not in given and value is not None and not _harmless(name, value)
    ]
    if refused:
        raise InputError(
            f"--replay {path}: the witness names {', '.join(refused)}; a replay opens no file or folder that only the "
            "witness names"
        )
    if settings.trust_remote_code and "model" not in given:
        raise InputError("--trust-remote-code: with --replay, only for a model that you name yourself with --model")
    return settings if seed is None else settings.model_copy(update={"seed": seed})


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """What is refused in settings, as a line about the witness."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--replay {path}: settings: {error}") from None


def wishes(claimed: Mapping[str, object]) -> str:
    """What a witness wants to have read, in words for the one who replays."""
    named = [f"{name} {foreign.clipped(repr(claimed.get(name)))}" for name in ("model", "text", "tokenizer")]
    code = "; it asks to run code, which no witness may" if claimed.get("trust_remote_code") else ""
    return f"the witness names {', '.join(named)}{code}"


def _harmless(name: str, value: str) -> bool:
    """Whether a name leads to no file or folder of the reader's, other than the corpora that villani knows."""
    if name == "model" and value.startswith(("config:", "builtin:")):
        return True
    if name == "text" and not value.startswith("hub:"):
        return bool(_CORPUS.fullmatch(value))
    if name == "tokenizer" and value in ("builtin", "gpt2"):
        return True
    identity = value.removeprefix("hub:").partition("?")[0] if name != "model" else value
    local = Path(identity).exists() or Path(value).exists()
    if name == "text" and "/" not in identity:  # such as `text`, a builder that reads the files of the current folder
        return False
    return bool(_ID.fullmatch(identity)) and ".." not in identity and not local


def _check_pattern(path: Path, decay: str) -> None:
    """A pattern that Python's matcher could spend years on is not run."""
    repeats = len(re.findall(r"[*+{?]", decay.replace(r"\.", "")))
    if decay.startswith("match:") and (repeats > _REPEATS or re.search(r"\)[*+{]", decay)):
        raise InputError(f"--replay {path}: decay {foreign.clipped(repr(decay))} repeats too much to be run unseen")
