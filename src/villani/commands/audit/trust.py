"""What a witness may ask for: its settings are data from a stranger, and trust comes from the command line alone.

A witness says which model and text it is of. Followed are names that lead to nothing of the reader's: shapes with
random weights, corpora by name, ids on the hub, whose checkpoints run no code. Folders and files are opened only where
the one who replays names them. Device, threads and leave to run code are never the witness's to choose.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from villani.bounds import check_bounds
from villani.commands.audit.settings import AuditSettings
from villani.errors import InputError
from villani.work import foreign

_OWN = ("device", "threads", "micro_tokens", "trust_remote_code", "allow_unused")  # the reader's to choose
_NAMES = ("model", "text", "tokenizer", "adapter")  # the reader's, where they are given
_STATED = frozenset(name for name, field in AuditSettings.model_fields.items() if not field.exclude)
_CORPUS = re.compile(r"builtin|ptb(:\w+)?|wikitext(-103)?(:\w+)?")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")  # owner/name, or a name alone
_WORK = 1 << 34  # tokens times probes that a replay takes on at most
_REMEDY = "give the witness.safetensors of an audit"


def replayed_settings(reader: AuditSettings, claimed: Mapping[str, object]) -> AuditSettings:
    """The settings of an audit to replay a witness with.

    Args:
        reader: of the one who replays: the path of the witness, names of model, adapter, text and tokenizer where they
            are given there, another seed, and all that concerns machine and trust.
        claimed: the settings in the witness.

    Raises:
        InputError: they are no settings of an audit, ask for more than a replay does, or name what must be given.
    """
    witness = f"--replay {reader.replay}"
    given = {name: value for name in _NAMES if (value := getattr(reader, name)) is not None}
    if "model" in given:  # whoever names the model names the whole of it
        given["adapter"] = reader.adapter
    own = {name: getattr(reader, name) for name in _OWN}
    settings = _stated(witness, {**claimed, **given, **own})
    with _of(witness):
        settings.check()
    if reader.seed not in (None, settings.seed) and settings.finite:
        raise InputError(
            f"--seed {reader.seed}: the witness's groups are its whole data; with another seed they are other data"
        )
    work = settings.groups * settings.sequences * settings.block * settings.probes
    if work > _WORK or (settings.seed or 0) >= 1 << 62:
        raise InputError(f"{witness}: settings: more tokens, probes or digits than a replay takes on; {_REMEDY}")
    with _of(witness):
        check_bounds(settings)
    _check_pattern(witness, settings.decay)
    refused = [
        f"{name} {foreign.clipped(repr(value))} (give it with --{name})"
        for name in _NAMES
        if name not in given and (value := getattr(settings, name)) is not None and not _harmless(name, value)
    ]
    if refused:
        raise InputError(
            f"{witness}: the witness names {', '.join(refused)}; a replay opens no file or folder that only the "
            "witness names"
        )
    if settings.trust_remote_code and "model" not in given:
        raise InputError("--trust-remote-code: with --replay, only for a model that you name yourself with --model")
    return settings if reader.seed is None else settings.model_copy(update={"seed": reader.seed})


def _stated(witness: str, content: Mapping[str, object]) -> AuditSettings:
    """Settings of an audit as a file has them: no replay of another one, and nothing left to a default by null."""
    with foreign.reading(f"{witness}: settings", _REMEDY):
        for name in content:
            if name not in _STATED:
                raise ValueError(f"{name}: Extra inputs are not permitted")
        for name in ("model", "text", "seed"):
            if content.get(name, "") is None:
                raise ValueError(f"{name}: Input should not be null")
    return foreign.validated(AuditSettings, dict(content), f"{witness}: settings", _REMEDY)


@contextmanager
def _of(witness: str) -> Iterator[None]:
    """What is refused in settings, as a line about the witness."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{witness}: settings: {error}") from None


def wishes(claimed: Mapping[str, object]) -> str:
    """What a witness wants to have read, in words for the one who replays."""
    names = [name for name in _NAMES if name != "adapter" or claimed.get(name) is not None]
    named = [f"{name} {foreign.clipped(repr(claimed.get(name)))}" for name in names]
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


def _check_pattern(witness: str, decay: str) -> None:
    """A pattern that Python's matcher could spend years on is not run."""
    if decay.startswith("match:"):
        foreign.check_unseen(decay, f"{witness}: decay {foreign.clipped(repr(decay))}")
