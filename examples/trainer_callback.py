"""A Hugging Face Trainer run that tells its own loss landscape while it goes; a minute on one core.

pip install 'villani[trainer]'
python examples/trainer_callback.py
"""

import tempfile

import torch
from transformers import Trainer, TrainingArguments

import villani

STEPS, BLOCKS = 300, 4000


def main() -> None:
    """Train on Python's documentation, with every figure that the callback logged printed at the end."""
    loaded = villani.load_model("builtin:tiny?layers=2&width=32")
    groups = villani.groups_from_text("builtin", loaded, groups=BLOCKS, sequences=1, block=32, finite=True)
    probes, rows = groups[:12], [{name: block[0] for name, block in group.items()} for group in groups[12:]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=16, learning_rate=3e-3, weight_decay=0.1,
            logging_steps=50, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(loaded.model, arguments, train_dataset=Rows(rows))
        callback = villani.VillaniCallback(
            trainer, probes, temperature=1e-3, schedule=villani.ConstantMemory(cap=1.0),
            max_overhead=0.3,  # at the usual 0.03 a run as short as this one sees none
        )  # fmt: skip
        trainer.add_callback(callback)
        trainer.train()
        for row in trainer.state.log_history:
            if "villani/psi" in row:
                trace, psi = ((row[f"villani/{name}"], row[f"villani/{name}_sem"]) for name in ("hessian_trace", "psi"))
                print(
                    f"step {row['step']}: tr ∇²L {trace[0]:.0f} ± {trace[1]:.0f}, Ψ {psi[0]:.4g} ± {psi[1]:.2g}", end=""
                )
                print(f", λ of the next step {row['villani/optimizer_weight_decay']:.3g}")
        print(f"measuring took {100 * trainer.state.log_history[-1]['villani/overhead']:.1f} % of the rest of the run")


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Token blocks as a data set."""

    def __init__(self, rows: list[dict[str, torch.Tensor]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


if __name__ == "__main__":
    main()
