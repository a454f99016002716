"""The training that a checkpoint came out of, as far as JSON files beside its weights tell: data, never unpickled."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from villani.errors import InputError, is_number
from villani.inputs.folders import is_regular, json_object, local_path, shortened

_ARGUMENTS, _STATE = "training_args.json", "trainer_state.json"
_MOST = 1.0  # η; no optimiser of a Transformer takes a larger one
_REMEDY = "give --learning-rate, or mend the file"


@dataclass(frozen=True)
class PastTraining:
    """How a checkpoint was trained.

    Attributes:
        learning_rate: η, its highest.
        optimizer: as the file names it; None where it names none.
        source: the file.
    """

    learning_rate: float
    optimizer: str | None
    source: str

    @property
    def adam(self) -> bool:
        """Whether it is of AdamW's family, as the Trainer's default is where no optimiser is named."""
        return self.optimizer is None or re.match(r"(paged_)?adamw?\b|(paged_)?adamw?_", self.optimizer) is not None

    @property
    def sgd(self) -> bool:
        """Whether it is torch's SGD."""
        return self.optimizer == "sgd"


def past_training(model: str) -> PastTraining | None:
    """What the folder of a checkpoint says; None for what is no local folder, or says nothing.

    Raises:
        InputError: a file that cannot be read, or a learning rate that can be none.
    """
    folder = local_path(model, "model")
    if not folder.is_dir():
        return None
    if is_regular(folder / _ARGUMENTS):
        content = _content(folder, _ARGUMENTS)
        rate, optimizer = content.get("learning_rate"), content.get("optim")
        if rate is not None:
            name = optimizer if isinstance(optimizer, str) else None
            return PastTraining(_rate(rate, folder, _ARGUMENTS), name, _ARGUMENTS)
    if is_regular(folder / _STATE):
        history = _content(folder, _STATE).get("log_history")
        entries = history if isinstance(history, list) else []
        rates = [entry["learning_rate"] for entry in entries if isinstance(entry, dict) and "learning_rate" in entry]
        highest = max((_rate(rate, folder, _STATE, zero=True) for rate in rates), default=0.0)
        if highest > 0:
            return PastTraining(highest, None, _STATE)
    return None


def _content(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json_object(folder, name)
    except InputError as error:
        raise InputError(f"{error}; {_REMEDY}") from None


def _rate(value: Any, folder: Path, name: str, zero: bool = False) -> float:
    """A learning rate of a file; schedules end at 0, which is one then."""
    if not is_number(value) or not (0 < value <= _MOST or (zero and value == 0)):
        raise InputError(
            f"{folder.name}/{name}: learning_rate={shortened(repr(value), 40)}: expected a number in (0, {_MOST:g}]; "
            f"{_REMEDY}"
        )
    return float(value)
