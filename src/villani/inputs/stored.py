"""Tensors in the safetensors files of a folder, known by their headers before anything of them is read."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from villani.errors import InputError, first_line
from villani.inputs.folders import inside, shortened

PICKLES = ("*.bin", "*.pt", "*.pth")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # no float8: scales


@dataclass(frozen=True)
class Stored:
    """A stored tensor.

    Attributes:
        file: that it is in.
        key: its name there.
        kind: its dtype, in the format's words.
        shape: its shape.
    """

    file: str
    key: str
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype | None:
        """That of floats of 16 bits or more; None of others."""
        return _DTYPES.get(self.kind)

    def read(self, folder: Path) -> torch.Tensor:
        """Its values, copied: the file may change under a map."""
        from safetensors import safe_open

        with safe_open(folder / self.file, framework="pt") as tensors:
            value: torch.Tensor = tensors.get_tensor(self.key)
            return value.clone()


def stored_tensors(folder: Path, name: str, files: Iterable[str]) -> dict[str, Stored]:
    """The tensors of some files of a folder by name, from headers alone, which also finds truncated files.

    Args:
        folder: that they are in.
        name: of the model in messages.
        files: their names.

    Raises:
        InputError: a damaged file, or a tensor that two files have.
    """
    from safetensors import SafetensorError, safe_open

    stored: dict[str, Stored] = {}
    for file in files:
        path = inside(folder, file)
        try:
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    part = tensors.get_slice(key)
                    if key in stored:
                        raise InputError(f"{name}: {shortened(key)} is in {stored[key].file} and in {file}")
                    stored[key] = Stored(file, key, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{name}: {file} is truncated or corrupt: {first_line(error)}") from error
    return stored


def other_formats(folder: Path) -> str:
    """What else a folder holds instead of safetensors, and what to do with it, for the line that refuses it."""
    pickles = sorted(file.name for suffix in PICKLES for file in folder.glob(suffix))
    if pickles:
        return f"only {shortened(pickles[0])}, a pickle"
    packed = sorted(file.name for file in folder.glob("*.gguf"))
    return f"only {shortened(packed[0])}; {gguf_remedy(packed[0])}" if packed else "no such file"


def gguf_remedy(file: str) -> str:
    """What to do with a GGUF file, whose weights are quantised as a rule."""
    return (
        "GGUF files are mostly quantised: give the checkpoint that it was made from, or, of one that is not, what "
        f"AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={shortened(file)!r}).save_pretrained(NEW) writes"
    )
