"""What every command that looks at a model on a text begins with: settings, model, text, objective, provenance."""

import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict

from villani.errors import InputError
from villani.inputs.corpora import load_corpus
from villani.inputs.models import LoadedModel, check_device, load_model
from villani.inputs.text import load_groups
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.objective import Objective
from villani.objective.parameters import check_decay
from villani.work import foreign
from villani.work.ledger import Settings
from villani.work.progress import Progress
from villani.work.records import ObjectiveRecord, Provenance, TensorGroup, TextRecord

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_FREE = {
    "decay",
    "device",
    "threads",
    "trust_remote_code",
    "allow_unused",
}  # what a ledger's rows do not depend on, or know better


class SubjectSettings(BaseModel):
    """A model, a text and how both are cut and run; see the help of `villani measure` for each field."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str]  # of the command

    model: str
    text: str = "builtin"
    tokenizer: str | None = None
    decay: str = "all"
    groups: int = 16
    sequences: int = 4
    block: int = 128
    probes: int = 1
    finite: bool = False
    seed: int = 0
    special_tokens: Literal["auto", "none", "bos"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    micro_tokens: int = 512
    trust_remote_code: bool = False
    allow_unused: str | None = None

    def check_least(self, **least: int) -> None:
        """Refuse numbers that are too small, before anything is loaded.

        Raises:
            InputError: one is.
        """
        for name, low in ({"sequences": 1, "block": 2, "micro_tokens": 1, "threads": 1} | least).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name}={value}: expected at least {low}")

    @property
    def at_once(self) -> int:
        """Tokens in one pass: blocks are never split."""
        return max(min(self.micro_tokens, self.sequences * self.block), self.block)

    def command(self) -> str:
        """The command that does this again, without where it is kept."""
        return command_words(self, self.name)

    def determining(self, text: TextRecord, provenance: Provenance, free: set[str]) -> Settings:
        """What determines a ledger's rows: of the settings, all but those that are `free`."""
        return {
            **self.model_dump(mode="json", exclude=_FREE | free),
            "parameter_checksum": provenance.parameter_checksum,
            "token_checksum": text.token_checksum,
            "device": provenance.device,
            "threads": provenance.threads,
            **provenance.versions,
        }


def command_words(settings: BaseModel, name: str) -> str:
    """The command with these settings: those that are not the defaults, and the text, λ and s in any case."""
    asked = settings.model_dump()
    words = ["villani", name, str(asked.pop("model"))]
    for field, value in asked.items():
        if value == type(settings).model_fields[field].default and field not in ("text", "weight_decay", "temperature"):
            continue
        flag = "--" + field.replace("_", "-")
        if isinstance(value, bool):
            words += [flag]
        elif isinstance(value, dict):
            words += [flag, ",".join(f"{name}={number:g}" for name, number in value.items())]
        elif isinstance(value, list | tuple):
            words += [flag, ",".join(f"{x:g}" if isinstance(x, float) else str(x) for x in value) or "none"]
        else:
            words += [flag, "none" if value is None else str(value)]
    return shlex.join(words)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and a text, ready to be measured.

    Attributes:
        loaded: the model.
        text: which text.
        objective: the loss of the one on the other, with λ and mask.
        provenance: what determines the bits of a measurement, beside its settings.
    """

    loaded: LoadedModel
    text: TextRecord
    objective: Objective
    provenance: Provenance


def load_subject(
    settings: SubjectSettings,
    weight_decay: float,
    progress: Progress,
    data: Path | None = None,
    *,
    groups: int | None = None,
    reuse: bool = False,
) -> Subject:
    """Load the model and the text.

    Args:
        settings: what to load.
        weight_decay: λ.
        progress: told where the work is.
        data: folder of text and tokenizer files; the environment variable VILLANI_DATA by default.
        groups: how many to cut, if not those of the settings.
        reuse: groups may come to more tokens than the text has.

    Raises:
        InputError: anything about the input that cannot be used.
    """
    check_options(settings.decay, settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    progress.stage(f"reading {settings.text}")
    corpus = load_corpus(settings.text, data=data)
    progress.stage(f"loading {settings.model}")
    loaded = load_model(
        settings.model,
        dtype=_DTYPES[settings.dtype],
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        allow_unused=settings.allow_unused,
    )
    progress.stage(f"cutting {settings.text} into tokens")
    ids, labels, text = load_groups(
        corpus,
        load_tokenizer(settings.tokenizer or loaded.tokenizer, data=data, special_tokens=settings.special_tokens),
        block=settings.block,
        groups=groups or settings.groups,
        sequences=settings.sequences,
        seed=settings.seed,
        finite=settings.finite,
        reuse=reuse,
        vocabulary=vocabulary(loaded.model),
        context=loaded.record.context,
    )
    objective = Objective(
        loaded.model,
        as_groups(ids, labels),
        weight_decay=weight_decay,
        decay=settings.decay,
        finite=settings.finite,
        micro_tokens=settings.micro_tokens,
    )
    with (
        foreign.reading(f"model {settings.model}", "mend its config.json, or give another model"),
        objective.evaluating(),
        torch.no_grad(),
    ):
        objective.forward(next(objective.batches(0)).rows(0, 1))  # a configuration may be wrong in ways unforeseen
    progress.stage("checking parameters")
    return Subject(loaded, text, objective, provenance_of(objective, settings.command(), settings.seed))


def check_options(decay: str, device: str) -> None:
    """Refuse options that no model could make right, before one is loaded.

    Raises:
        InputError: an unknown mask of what decays, or a device that is not there.
    """
    check_decay(decay)
    check_device(device)


def as_groups(ids: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """(G, B, T) ids and labels as the groups that `Objective` takes."""
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def vocabulary(model: torch.nn.Module) -> int:
    """How many token ids a model knows."""
    find: Any = model.get_input_embeddings
    return int(find().num_embeddings)


def objective_record(objective: Objective) -> ObjectiveRecord:
    """λ and the mask as they stand in JSON."""
    space = objective.parameters
    return ObjectiveRecord(
        weight_decay=objective.weight_decay,
        decay=space.decay,
        parameters=space.size,
        decayed_parameters=space.decayed_size,
        finite=objective.finite,
        undecayed=[TensorGroup(name=p.name, parameters=p.tensor.numel()) for p in space.parameters if not p.decayed],
    )


def provenance_of(objective: Objective, command: str, seed: int) -> Provenance:
    """What determines the bits of a measurement, beside its settings."""
    return Provenance(
        command=command,
        seed=seed,
        device=_device_name(objective.device),
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("villani", "torch", "transformers", "tokenizers", "numpy")},
        },
        parameter_checksum=objective.parameters.checksum(),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
