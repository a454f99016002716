"""Hugging Face's side of things: files from the hub, and its libraries' errors and log lines kept short."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from villani.errors import InputError, first_line

_HUB_TIMEOUT = 3.0  # seconds; huggingface_hub's own retries would take 23 to say that there is no network


def looks_like_path(spec: str) -> bool:
    """Whether `spec` can only be meant as a path, never as a hub id."""
    return spec.startswith((".", "/", "~")) or spec.count(os.sep) > 1 or spec.endswith((".bin", ".pt", ".safetensors"))


def hub_files(repository: str, kind: str = "model") -> list[str]:
    """Names of the files in a hub repository (`kind`: model | dataset), asked once, without retries.

    Raises:
        InputError: not a hub id, unknown, gated, or the hub cannot be reached within a few seconds.
    """
    from huggingface_hub import HfApi, errors

    try:
        info: Any = HfApi().repo_info(repository, repo_type=kind, timeout=_HUB_TIMEOUT)
    except errors.HFValidationError as error:
        raise InputError(f"{repository!r} is neither a local folder nor a hub id (owner/name)") from error
    except errors.GatedRepoError as error:
        raise InputError(f"{repository!r} is gated on the hub: ask for access and run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"{repository!r}: no such {kind} on the hub (or a private one): check the name") from error
    except Exception as error:  # the HTTP library under huggingface_hub, and its exceptions, change between versions
        raise InputError(
            f"{repository!r} is neither a local folder nor in the local cache, and the hub cannot be reached "
            f"({first_line(error)}): check the name or the network, or give a folder"
        ) from error
    return [sibling.rfilename for sibling in info.siblings or []]


def hub_folder(repository: str, wanted: Sequence[str], complete: Callable[[Path], bool]) -> Path:
    """Local folder with a hub model's files: from the cache when `complete` there, else downloaded.

    Args:
        repository: hub id.
        wanted: file name patterns (fnmatch) to download.
        complete: whether a cached folder has everything needed.

    Raises:
        InputError: as `hub_files`, or the download fails.
    """
    from huggingface_hub import errors, snapshot_download

    with contextlib.suppress(errors.LocalEntryNotFoundError, errors.HFValidationError):
        cached = Path(snapshot_download(repository, local_files_only=True))
        if complete(cached):
            return cached
    hub_files(repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=list(wanted)))
    except Exception as error:
        raise InputError(f"{repository!r}: the download from the hub failed: {first_line(error)}") from error


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """No request to the hub goes out, whoever asks for it."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars, log lines and warnings; what matters in them is checked here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
