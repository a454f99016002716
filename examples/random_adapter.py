"""Write a PEFT adapter of random numbers for a checkpoint, to try --adapter with: no training, no peft.

    python examples/random_adapter.py BASE FOLDER

Every attention layer of FOLDER's base gets B·A of rank 2 on its query projection, with entries of about 0.02.
"""

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import villani


def main(base: str, folder: Path) -> None:
    """Draw the two factors of each layer, and write them as peft does."""
    model = villani.load_model(base).model
    generator = torch.Generator().manual_seed(0)
    targets: dict[str, Any] = {n: m for n, m in model.named_modules() if n.endswith(("q_proj", "c_attn"))}
    tensors = {}
    for name, module in targets.items():
        shape = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.T.shape
        for factor, size in (("A", (2, shape[1])), ("B", (shape[0], 2))):
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = 0.02 * torch.randn(size, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    ends = sorted({name.rpartition(".")[2] for name in targets})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ends, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
