"""`villani demo`: train a small GPT-Neo, measure it at several λ and s and along one ray, write the page."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from villani.bounds import check_number
from villani.commands.converge.chains import checksum
from villani.commands.finish import finish
from villani.commands.measure.record import Displacement, MeasurementRecord, TrainingRecord
from villani.commands.measure.run import MeasureSettings, measured, rows_bytes
from villani.commands.subject import Subject, as_groups, provenance_of
from villani.curvature.probes import random_direction
from villani.dynamics.training import train
from villani.errors import InputError
from villani.inputs.corpora import load_corpus
from villani.inputs.models import LoadedModel, load_model
from villani.inputs.text import Blocks, choose_groups, cut_blocks, text_record
from villani.inputs.tokenizers import load_tokenizer
from villani.objective.objective import Objective
from villani.streams import Purpose, stream
from villani.work.budget import Shape, announce
from villani.work.ledger import Ledger, write_settings, writing
from villani.work.progress import Progress, Silent
from villani.work.records import ModelRecord, TextRecord
from villani.work.team import alone

MODEL = "builtin:tiny"
BATCH, LEARNING_RATE = 16, 3e-3
MEASURED = MeasureSettings(
    model=MODEL, weight_decay=[0.1, 0.01, 1.0], temperature=[1e-3, 1e-1, 10.0], groups=16, sequences=4, block=128
)
RADII = (0.1, 0.3, 1.0, 3.0, 10.0)  # in units of ‖θ‖


def run_demo(run: Path, *, steps: int = 1000, seed: int = 0, progress: Progress | None = None) -> MeasurementRecord:
    """Train, measure, write the report; resumes where it was stopped.

    Args:
        run: directory; the trained model stays there as a folder that `villani measure` takes.
        steps: of training.
        seed: of everything random.
        progress: told where the work is.

    Returns:
        the record at the trained point, with what it cost.

    Raises:
        InputError: steps < 1, a negative seed, a run directory that cannot be used, or several processes.
    """
    alone("villani demo")
    check_number("steps", steps)
    check_number("seed", seed)
    if steps < 1 or seed < 0:
        raise InputError(f"steps={steps}, seed={seed}: expected steps ≥ 1 and seed ≥ 0")
    show = progress or Silent()
    settings = MEASURED.model_copy(update={"seed": seed})
    command = f"villani demo --steps {steps} --seed {seed}"
    show.stage("reading Python's documentation")
    tokenizer = load_tokenizer("builtin")
    corpus = load_corpus("builtin")
    blocks = cut_blocks(tokenizer.encode(corpus.documents), settings.block, boundaries=corpus.boundaries)
    kept, held_out = split(blocks, seed)
    ids, labels = choose_groups(kept, settings.groups, settings.sequences, seed)
    text = text_record(corpus, tokenizer, kept, ids, labels)
    shape = Shape.of(load_model(f"{MODEL}?seed={seed}").model)
    measuring = 4 * (1 + len(RADII)) * settings.groups * settings.sequences
    needs = shape.work(
        (steps * BATCH + measuring) * settings.block, at_once=settings.at_once, block=settings.block, vectors=5, kept=2
    )  # fmt: skip
    rows = (1 + len(RADII)) * rows_bytes(shape.parameters, settings.groups)
    announce(show, replace(needs, disk=needs.disk + rows), run, what="the demo", instead="free some")
    with Ledger(run, {"command": command, **settings.model_dump(), "token_checksum": text.token_checksum}) as ledger:
        write_settings(run, settings.model_dump() | {"steps": steps})
        losses = _trained(run, ledger, kept, steps, seed, show)
        loaded = load_model(str(run / "model"))
        loaded = replace(loaded, record=_described(loaded.record, steps))
        objective = Objective(loaded.model, as_groups(ids, labels), weight_decay=settings.weight_decay[0])
        training = _training_record(loaded, text, losses, seed, held_out)
        subject = Subject(loaded, text, objective, provenance_of(objective, command, seed))
        show.stage("measuring at the trained point")
        record, cost = measured(subject, settings, ledger.scoped("trained"), show)
        records, costs = [training, record], {1: cost}
        direction = random_direction(objective.parameters, seed)
        norm = float(objective.parameters.norms_squared().sum()) ** 0.5
        for index, multiple in enumerate(RADII):
            radius = multiple * norm
            show.stage(f"measuring along a ray, {index + 1} of {len(RADII)}")
            place = Displacement(direction="one random direction", radius=radius)
            with objective.displaced(direction, radius):
                checksum = {"parameter_checksum": objective.parameters.checksum()}
                there = replace(subject, provenance=subject.provenance.model_copy(update=checksum))
                found, spent = measured(there, settings, ledger.scoped(f"ray/{index}"), show, place)
            records.append(found)
            costs[len(records) - 1] = spent
        finish(run, "villani demo", records, costs)
    return record.model_copy(update={"cost": cost})


def split(blocks: Blocks, seed: int) -> tuple[Blocks, Blocks]:
    """Nine tenths of the blocks for training and measuring, the rest held out; a seeded random choice."""
    order = torch.from_numpy(stream(seed, Purpose.BATCHES).permutation(len(blocks.ids)))
    cut = len(order) * 9 // 10
    words = f"{blocks.cut}; nine tenths of the blocks, chosen at random, are trained and measured on, the rest held out"
    kept, held_out = (
        replace(blocks, ids=blocks.ids[part], labels=blocks.labels[part], cut=words)
        for part in (order[:cut], order[cut:])
    )
    return kept, held_out


def _trained(run: Path, ledger: Ledger, blocks: Blocks, steps: int, seed: int, show: Progress) -> list[float]:
    """Train once; the weights go to run/model, the losses into the ledger."""
    row = ledger.get("training")
    files = [run / "model" / name for name in ("config.json", "model.safetensors")]
    if row is not None and files[1].is_file():
        if not (files[0].is_file() and np.array_equal(checksum(*files), row["model"])):
            raise InputError(
                f"{run / 'model'}: not the model that the demo trained; delete that folder, or choose --run"
            )
        return [float(loss) for loss in row["loss"]]
    start = time.perf_counter()
    model = load_model(f"{MODEL}?seed={seed}").model
    show.stage("training")
    losses = train(
        model, blocks.ids, blocks.labels, steps=steps, batch=BATCH, learning_rate=LEARNING_RATE, seed=seed,
        progress=show.advance,
    ).losses  # fmt: skip
    with writing(run):
        shutil.rmtree(run / "model.partial", ignore_errors=True)
        model.save_pretrained(run / "model.partial")  # type: ignore[operator]
        shutil.rmtree(run / "model", ignore_errors=True)
        (run / "model.partial").replace(run / "model")
    if row is None:
        rows = {"loss": np.array(losses), "model": checksum(*files)}
        ledger.put("training", rows, seconds=time.perf_counter() - start, peak_memory_bytes=0)
    return losses


def _described(record: ModelRecord, steps: int) -> ModelRecord:
    words = f"a 2-layer GPT-Neo, trained for {steps} steps of AdamW without weight decay on the builtin text"
    return record.model_copy(update={"spec": MODEL, "description": words})


def _training_record(
    loaded: LoadedModel, text: TextRecord, losses: list[float], seed: int, held_out: Blocks
) -> TrainingRecord:
    return TrainingRecord(
        model=loaded.record,
        text=text,
        optimizer="AdamW (β = 0.9, 0.95), warm-up then cosine, gradient norm clipped at 1",
        weight_decay=0.0,
        learning_rate=LEARNING_RATE,
        batch=BATCH,
        seed=seed,
        steps=list(range(1, len(losses) + 1)),
        loss=losses,
        held_out_loss=Objective(loaded.model, [{"input_ids": held_out.ids, "labels": held_out.labels}]).loss(),
    )
