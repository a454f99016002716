"""Training that a kill does not set back: its state in files, from which it goes on to the same bits.

Weights and the optimiser's own tensors are in a safetensors file named by its step. A small file beside it, written
after it, names it with its checksum and holds the rest; older states go last. Whatever moment a kill comes at, what
that small file names is there.
"""

import glob
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from villani.work import foreign
from villani.work.ledger import write_atomically
from villani.work.stretches import checksum, read_state, write_state

PATIENCE = 120.0  # seconds of training that a kill may lose
_REMEDY = "remove that file, and this training run begins anew"


class Interrupted:
    """The state of one training run.

    Args:
        path: of its files, without what tells their kind.
        optimizer: torch's, whose state it is, too; begun with the same settings every time.

    Attributes:
        seconds: that the run took in processes before this one, once its state is read.
    """

    def __init__(self, path: Path, optimizer: torch.optim.Optimizer) -> None:
        self._path, self._optimizer = path, optimizer
        self._parameters: list[torch.Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.seconds = 0.0
        self._began = self._last = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether so much was done since the last state that the next is worth writing."""
        return time.perf_counter() - self._last > PATIENCE

    def write(self, step: int, rest: dict[str, Any]) -> None:
        """Keep the state after `step` steps; `rest` is what JSON can hold."""
        names = [sorted(self._optimizer.state.get(p, {})) for p in self._parameters]
        file = self._file(step)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_state(file, self._tensors(names))
        spent = self.seconds + time.perf_counter() - self._began
        told = {"step": step, "seconds": spent, "slots": names, "rest": rest, "checksum": checksum(file).tolist()}
        random = [bytes(state.tolist()).hex() for state in self._random()]
        write_atomically(self._told, json.dumps(told | {"random": random}))
        for left in _files(self._path):
            if left != file:
                left.unlink()
        self._last = time.perf_counter()

    def read(self) -> tuple[int, dict[str, Any]] | None:
        """Put weights, the optimiser's tensors and torch's random numbers back: the steps done and the rest; or None.

        Raises:
            InputError: a file is gone or damaged.
        """
        if not self._told.exists():
            return None
        told = foreign.read_json(self._told, _REMEDY)
        with foreign.reading(self._told, _REMEDY):
            for parameter, names in zip(self._parameters, told["slots"], strict=True):
                for name in names:
                    like = torch.zeros(()) if name == "step" else torch.zeros_like(parameter)
                    self._optimizer.state[parameter][name] = like
            step, rest, self.seconds = int(told["step"]), dict(told["rest"]), float(told.get("seconds", 0.0))
            random = [torch.tensor([*bytes.fromhex(s)], dtype=torch.uint8) for s in told["random"]]
            checked = torch.tensor(told["checksum"], dtype=torch.uint8).numpy()
            read_state(self._file(step), self._tensors(told["slots"]), checked)
            torch.set_rng_state(random[0])
            if len(random) > 1:
                torch.cuda.set_rng_state(random[1], self._parameters[0].device)
        return step, rest

    def _tensors(self, names: Sequence[Sequence[str]]) -> list[torch.Tensor]:
        slots = [self._optimizer.state[p][name] for p, own in zip(self._parameters, names, strict=True) for name in own]
        return [*(p.detach() for p in self._parameters), *slots]

    def _random(self) -> list[torch.Tensor]:
        device = self._parameters[0].device
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    @property
    def _told(self) -> Path:
        return _told(self._path)

    def _file(self, step: int) -> Path:
        return self._path.with_name(f"{self._path.name}-{step}.safetensors")


def clear(path: Path) -> None:
    """Remove the state of a training run, if there is one."""
    for left in (_told(path), *_files(path)):
        left.unlink(missing_ok=True)


def _told(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _files(path: Path) -> list[Path]:
    return [*path.parent.glob(f"{glob.escape(path.name)}-*.safetensors")]
