"""Hand-built records: the report reads nothing else."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from villani.commands.content import run_records as content
from villani.commands.measure.record import (
    DesignRecord,
    Displacement,
    LayerRecord,
    MeasurementRecord,
    TensorRecord,
    TrainingRecord,
)
from villani.work.records import (
    Cost,
    EstimateRecord,
    ModelRecord,
    ObjectiveRecord,
    Provenance,
    PsiParts,
    PsiRecord,
    SourceFile,
    TensorGroup,
    TextRecord,
)

GROUPS = 16
NAMES = ["attn.attention.q_proj.weight", "attn.attention.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.bias"]


def estimate(value: float, sem: float, status: str = "statistical") -> EstimateRecord:
    half = student.ppf(0.975, GROUPS - 1) * sem
    interval = (
        value - half,
        value + half,
    )
    return EstimateRecord(value=value, sem=sem, n=GROUPS, interval=interval, status=status)


def psi_record(c: dict, decay: float, temperature: float) -> PsiRecord:
    """Ψ by THEORY.md §6, written out independently of the page's JavaScript."""
    weights = np.array([0.0, 1 / temperature, 2 * decay / temperature, -1.0])
    sems = np.sqrt(np.diag(c["covariance"]))
    parts = PsiParts(
        decay_norm=estimate(decay**2 * c["norm"] / temperature, 0, "certified"),
        cross=estimate(weights[2] * c["dot"], weights[2] * sems[2]),
        gradient_norm=estimate(weights[1] * c["gradient"], weights[1] * sems[1]),
        decay_laplacian=estimate(-decay * c["decayed"], 0, "certified"),
        hessian_trace=estimate(-c["trace"], sems[3]),
    )
    value = math.fsum(getattr(parts, name).value for name in PsiParts.model_fields)
    whole = estimate(value, math.sqrt(max(weights @ c["covariance"] @ weights, 0)))
    return PsiRecord(**whole.model_dump(), weight_decay=decay, temperature=temperature, parts=parts)


def tensors(share: float, sem: float) -> list[TensorRecord]:
    names = ["transformer.wte.weight", *[f"transformer.h.{i}.{name}" for i in range(4) for name in NAMES]]
    sizes = [0.4, *[0.04 * (1 + i % 5) * (-0.2 if i == 7 else 1) for i in range(16)]]
    return [
        TensorRecord(
            name=name, shape=[192, 192], parameters=36864, decayed=not name.endswith("bias"), norm_squared=12.5,
            hessian_trace=estimate(size * share, 0.1 * sem * (1 + i % 3)),
        )
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]  # fmt: skip


def layers(share: float, sem: float) -> list[LayerRecord]:
    names = ["transformer.wte.weight", "0", "1", "2", "3"]
    return [
        LayerRecord(name=name, parameters=147456, hessian_trace=estimate(0.2 * share * (1 + i % 3), 0.3 * sem))
        for i, name in enumerate(names)
    ]


def build_measurement(**changes: object) -> MeasurementRecord:
    """`changes`: model, undecayed, finite, loss, gradient, naive, dot, trace, norm, sems, grid, ray, df; see `c`."""
    c: dict = {
        "model": "roneneldan/TinyStories-3M", "undecayed": 0, "finite": False, "decayed": None, "df": GROUPS - 1.0,
        "loss": 4.247, "gradient": 0.0421, "naive": 0.317, "dot": 1.84, "trace": 2231.0, "norm": 48120.5,
        "sems": [0.021, 0.0043, 0.11, 61.0], "grid": [(0.1, 1e-3)], "ray": None,
    } | changes  # fmt: skip
    total = 2_195_328
    c["decayed"] = total - 192 * c["undecayed"]
    sems = np.array(c["sems"], dtype=float)
    correlation = np.eye(4) + 0.2 * (np.ones((4, 4)) - np.eye(4))
    c["covariance"] = correlation * np.outer(sems, sems)
    spec = ModelRecord(
        spec=c["model"], architecture="GPTNeoForCausalLM", description="from the hub", dtype="float32", context=2048
    )
    left = [TensorGroup(name=f"transformer.h.{i}.mlp.c_proj.bias", parameters=192) for i in range(c["undecayed"])]
    return MeasurementRecord(
        model=spec,
        objective=ObjectiveRecord(
            weight_decay=c["grid"][0][0] if c["grid"] else 0.1, decay="hf" if left else "all", parameters=total,
            decayed_parameters=c["decayed"], finite=c["finite"], undecayed=left,
        ),
        text=text_record(),
        design=DesignRecord(
            groups=GROUPS, sequences=4, block=128, probes=1, trace="gauss-newton", blocks="whole", seed=0,
            confidence=0.95, sketch=None, micro_tokens=512,
        ),
        displacement=None if c["ray"] is None else Displacement(direction=c["ray"][0], radius=c["ray"][1]),
        loss=estimate(c["loss"], sems[0]),
        gradient_norm_squared=estimate(c["gradient"], sems[1]),
        naive_gradient_norm_squared=estimate(c["naive"], 2 * sems[1]),
        gradient_dot_parameters=estimate(c["dot"], sems[2]),
        hessian_trace=estimate(c["trace"], sems[3]),
        gauss_newton_trace=estimate(1.4 * c["trace"], 0.2 * sems[3]),
        decayed_norm_squared=c["norm"],
        covariance=c["covariance"].tolist(),
        degrees_of_freedom=c["df"],
        tensors=tensors(c["trace"], sems[3]),
        layers=layers(c["trace"], sems[3]),
        psi=[psi_record(c, *pair) for pair in c["grid"]],
        provenance=Provenance(
            command="villani measure MODEL --text builtin", seed=0, device="cpu", threads=2,
            versions={"villani": "0.1.0", "torch": "2.13.0"}, parameter_checksum="3f" * 32,
        ),
    )  # fmt: skip


def text_record() -> TextRecord:
    source = SourceFile(name="stories.txt", bytes=81920, md5="d4" * 16)
    return TextRecord(
        spec="builtin", sources=[source], tokenizer="gpt2", tokenizer_sources=[source], documents=120, tokens=20480,
        blocks=160, cut="documents joined by <eos> and cut into blocks of 128 tokens", token_checksum="9a" * 32,
    )  # fmt: skip


def build_training(**changes: object) -> TrainingRecord:
    steps = list(range(0, 400, 5))
    fields: dict = {
        "model": build_measurement().model, "text": text_record(), "optimizer": "AdamW", "weight_decay": 0.1,
        "learning_rate": 1e-3, "batch": 16, "seed": 0, "steps": steps, "held_out_loss": 3.21,
        "loss": [2.9 + 5.1 * math.exp(-step / 80) + 0.08 * math.sin(step) for step in steps],
    } | changes  # fmt: skip
    return TrainingRecord(**fields)


def build_run(*records: MeasurementRecord | TrainingRecord, title: str = "villani measure") -> Any:
    return content()(villani="0.1.0", title=title, records=list(records))


def build_demo() -> Any:
    """A training run, the trained point, and two rays."""

    def at(direction: str, radius: float) -> MeasurementRecord:
        return build_measurement(
            ray=(direction, radius), loss=4.2 + 0.01 * radius**2, gradient=0.04 + 3e-4 * radius**2,
            dot=1.8 + 0.02 * radius**2, trace=2231.0 * (1 + radius / 4), norm=48120.5 + radius**2, undecayed=4,
        )  # fmt: skip

    rays = [at(name, radius) for name in ("random", "weights") for radius in (1.0, 4.0, 16.0, 64.0, 256.0)]
    return build_run(build_training(), build_measurement(undecayed=4), *rays, title="villani demo")


def build_cost(seconds: float = 41.2) -> Cost:
    return Cost(seconds=seconds, seconds_per_group=seconds / 16, peak_memory_bytes=812 * 2**20, tokens=8128, probes=16)


@pytest.fixture
def measurement_record() -> Callable[..., MeasurementRecord]:
    return build_measurement


@pytest.fixture
def run_records() -> Callable[..., Any]:
    return build_run


@pytest.fixture
def demo_run() -> Any:
    return build_demo()


@pytest.fixture
def cost() -> Cost:
    return build_cost()
