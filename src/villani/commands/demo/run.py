"""`villani demo`: train a small GPT-Neo, measure it at several λ and s and along one ray, write the page."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from villani.commands.demo.settings import DemoSettings
from villani.commands.measure.record import Displacement, TrainingRecord
from villani.commands.measure.run import measured, rows_bytes
from villani.commands.measure.settings import MeasureSettings
from villani.commands.running import Outcome
from villani.commands.subject import Subject, as_groups, load, load_blocks, load_text, load_tokenizer_of, provenance_of
from villani.curvature.probes import random_direction
from villani.dynamics.training import train
from villani.errors import InputError
from villani.inputs.text import Blocks, choose_groups, text_record
from villani.objective.objective import Objective
from villani.streams import Purpose, stream
from villani.work.budget import Needs, Shape
from villani.work.ledger import writing
from villani.work.stretches import checksum
from villani.work.team import Rows
from villani.work.work import Work

MODEL = "builtin:tiny"
BATCH, LEARNING_RATE = 16, 3e-3
MEASURED = MeasureSettings(
    model=MODEL,
    weight_decay=[0.1, 0.01, 1.0],
    temperature=[1e-3, 1e-1, 10.0],
    groups=16,
    sequences=4,
    block=128,
    trace="gauss-newton",
)
_TRAINING, _POINT, _RAY = "training", "measuring at the trained point", "measuring along a ray"
RADII = (0.1, 0.3, 1.0, 3.0, 10.0)  # in units of ‖θ‖


def run(settings: DemoSettings, work: Work) -> Outcome:
    """Train, measure, and keep it; resumes where it was stopped. The trained model stays in the run, in `model`.

    Raises:
        InputError: a run directory that cannot be used, or several processes.
    """
    measuring = MEASURED.model_copy(update={"seed": settings.seed})
    corpus = load_text(measuring.text, work)
    spec = f"{MODEL}?seed={settings.seed}"
    start = load(settings, work, spec)
    tokenizer = load_tokenizer_of(measuring, work, start)
    blocks, _ = load_blocks(measuring.text, measuring, work, start)
    trained_on, held_out = split(blocks, settings.seed)
    ids, labels = choose_groups(trained_on, measuring.groups, measuring.sequences, settings.seed)
    text = text_record(corpus, tokenizer, trained_on, ids, labels)
    directory = work.open(
        "demo", "",
        {"command": settings.command(), "token_checksum": text.token_checksum}
        | measuring.model_dump(exclude={"adapter"}),
        measuring.model_dump() | {"steps": settings.steps},
        needs=_needs(settings, measuring, Shape.of(start.model)), what="the demo", instead="free some",
    )  # fmt: skip
    losses = _trained(settings, work, spec, trained_on, directory)
    loaded = load(settings, work, str(directory / "model"))
    words = f"a 2-layer GPT-Neo, trained for {settings.steps} steps of AdamW without weight decay on the builtin text"
    loaded = replace(loaded, record=loaded.record.model_copy(update={"spec": MODEL, "description": words}))
    objective = Objective(loaded.model, as_groups(ids, labels), weight_decay=measuring.weight_decay[0])
    judged = Objective(loaded.model, [{"input_ids": held_out.ids, "labels": held_out.labels}])
    training = TrainingRecord(
        model=loaded.record, text=text, weight_decay=0.0, learning_rate=LEARNING_RATE, batch=BATCH, seed=settings.seed,
        optimizer="AdamW (β = 0.9, 0.95), warm-up then cosine, gradient norm clipped at 1", loss=losses,
        steps=list(range(1, len(losses) + 1)), held_out_loss=judged.loss(),
    )  # fmt: skip
    subject = Subject(loaded, text, objective, provenance_of(objective, settings.command(), settings.seed))
    work.stage(_POINT)
    record, cost = measured(subject, measuring, work.scope("trained"))
    records, costs = [training, record], {1: cost}
    direction = random_direction(objective.parameters, settings.seed)
    norm = float(objective.parameters.norms_squared().sum()) ** 0.5
    for index, multiple in enumerate(RADII):
        radius = multiple * norm
        part = work.part(index, len(RADII))
        part.stage(f"measuring along a ray, {index + 1} of {len(RADII)}", _RAY)
        place = Displacement(direction="one random direction", radius=radius)
        with objective.displaced(direction, radius):
            bits = {"parameter_checksum": objective.parameters.checksum()}
            there = replace(subject, provenance=subject.provenance.model_copy(update=bits))
            record, cost = measured(there, measuring, part.scope(f"ray/{index}"), place)
        costs[len(records)] = cost
        records.append(record)
    return Outcome(records, costs, shown=1)


def _needs(settings: DemoSettings, measuring: MeasureSettings, shape: Shape) -> Needs:
    """Of the training, and of measuring at a point and along the ray."""
    point = 4.0 * measuring.groups * measuring.sequences * measuring.block
    stages = {_TRAINING: settings.steps * BATCH * measuring.block, _POINT: point, _RAY: len(RADII) * point}
    needs = shape.work(stages, at_once=measuring.at_once, block=measuring.block, vectors=5, kept=2)
    return replace(needs, disk=needs.disk + (1 + len(RADII)) * rows_bytes(shape.parameters, measuring.groups))


def split(blocks: Blocks, seed: int) -> tuple[Blocks, Blocks]:
    """Nine tenths of the blocks for training and measuring, the rest held out; a seeded random choice."""
    order = torch.from_numpy(stream(seed, Purpose.BATCHES).permutation(len(blocks.ids)))
    cut = len(order) * 9 // 10
    words = f"{blocks.cut}; nine tenths of the blocks, chosen at random, are trained and measured on, the rest held out"
    own, held_out = (
        replace(blocks, ids=blocks.ids[part], labels=blocks.labels[part], cut=words)
        for part in (order[:cut], order[cut:])
    )
    return own, held_out


def _trained(settings: DemoSettings, work: Work, spec: str, blocks: Blocks, directory: Path) -> list[float]:
    """Train once; the weights go to run/model, the losses into the ledger. Lost weights are trained again."""
    files = [directory / "model" / name for name in ("config.json", "model.safetensors")]

    def make() -> Rows:
        model = load(settings, work, spec, train=True).model
        losses = train(
            model, blocks.ids, blocks.labels, steps=settings.steps, batch=BATCH, learning_rate=LEARNING_RATE,
            seed=settings.seed, work=work,
        ).losses  # fmt: skip
        with writing(directory):
            shutil.rmtree(directory / "model.partial", ignore_errors=True)
            model.save_pretrained(directory / "model.partial")  # type: ignore[operator]
            shutil.rmtree(directory / "model", ignore_errors=True)
            (directory / "model.partial").replace(directory / "model")
        return {"loss": np.array(losses), "model": checksum(*files)}

    work.stage(_TRAINING)
    lost = work.get("training") is not None and not files[1].is_file()
    rows = work.once("training", make)
    if lost:
        make()
    if not (files[0].is_file() and np.array_equal(checksum(*files), rows["model"])):
        raise InputError(
            f"{directory / 'model'}: not the model that the demo trained; delete that folder, or choose --run"
        )
    return [float(loss) for loss in rows["loss"]]
