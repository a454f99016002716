"""The experiments of a study: a table each of its TOML file, with what may be asked of it."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

PartName = Literal[
    "landscape", "spectra", "convergence", "certificates", "estimators", "pathologies", "schedules", "forgetting"
]
PARTS: dict[PartName, str] = {
    "landscape": "E1, Ψ along rays and orbits", "spectra": "E2, spectra", "convergence": "E3, chains of noisy SGD",
    "certificates": "E4, certificates", "estimators": "E5, ways to the trace", "pathologies": "pathologies",
    "schedules": "E6, schedules of weight decay", "forgetting": "E7, what tuning changed",
}  # fmt: skip
ScheduleName = Literal["constant", "memory", "adamc", "cautious", "radial-gap"]
Ways = Literal["hutchinson", "gauss-newton", "taylor", "taylor-layer", "taylor-tensor"]


class Part(BaseModel):
    """A table of the file: no key but these."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LandscapePart(Part):
    """E1 on every model that SGD with L2 led to; groups as of `villani audit`, radii in units of ‖θ‖."""

    groups: int = Field(12, ge=8)
    sequences: int = Field(4, ge=1)
    ray_groups: int = Field(6, ge=3)
    rays: list[str] = Field(default_factory=lambda: ["random", "gradient", "parameters"])
    radii: list[float] = Field(default_factory=lambda: [0.0, 1.0, 2.0, 4.0])
    search: int = Field(0, ge=0)
    confirmed: int = Field(2, ge=1)
    seeds: int | None = Field(None, ge=1)  # only models of the first so many training seeds


class SpectraPart(Part):
    """E2 on the same models; see `villani spectrum`."""

    groups: int = Field(2, ge=1)
    sequences: int = Field(4, ge=1)
    top: int = Field(3, ge=1)
    bottom: int = Field(2, ge=0)
    tolerance: float = 1e-2
    most: int = 400
    density_probes: int = Field(4, ge=0)
    density_steps: int = Field(20, ge=2)
    basis: int | None = None
    memory: float = 8.0
    seeds: int | None = Field(None, ge=1)


class ConvergencePart(Part):
    """E3: chains of noisy SGD from where training starts, at the λ of the sweep or fewer; see `villani converge`."""

    weight_decay: list[float] = Field(default_factory=list)
    temperature: float = 1e-4
    learning_rate: float = 0.1
    steps: int = Field(400, ge=8)
    chains: int = Field(4, ge=1)
    groups: int = Field(64, ge=1)
    sequences: int = Field(4, ge=1)
    log_every: int = Field(5, ge=1)


class CertificatesPart(Part):
    """E4: certificates of noisy SGD from where training starts; see `villani certify`."""

    prior: Literal["init", "text", "given"] = "init"
    direction: Literal["sgd", "momentum", "adam"] = "momentum"
    weight_decay: list[float]
    temperature: float = 2e-4
    learning_rate: float = 0.3
    steps: int = Field(600, ge=1)
    batch: int = Field(16, ge=1)
    blocks: int | None = None
    alpha: list[float] = Field(default_factory=lambda: [0.01, 0.1])
    candidates: int = Field(1, ge=1)


class EstimatorsPart(Part):
    """E5 on one trained model; `exact` is the largest d whose trace is summed entry by entry."""

    groups: int = Field(4, ge=1)
    sequences: int = Field(4, ge=1)
    probes: int = Field(2, ge=2)
    repeats: int = Field(20, ge=2)
    ways: list[Ways] = Field(default_factory=lambda: [*get_args(Ways)])
    reference_probes: int = Field(200, ge=2)
    exact: int = Field(3000, ge=0)


class PathologiesPart(Part):
    """Of every trained model, on held-out blocks."""

    blocks: int = Field(32, ge=2)


class SchedulesPart(Part):
    """E6 of schedules: AdamW at the λ that the grid chose, on training seeds that come after the grid's.

    `every` and `blocks` are of the radial gap's measurements; `cap` is the largest λ of any schedule.
    """

    ways: list[ScheduleName] = Field(default_factory=lambda: [*get_args(ScheduleName)])
    seeds: int = Field(2, ge=2)
    every: int = Field(100, ge=1)
    blocks: int = Field(64, ge=1)
    cap: float = 10.0


class ForgettingPart(Part):
    """E7, at the end of every training run: loss on another text, distance, sharpness and pathologies, in pairs.

    `pathologies` is held-out blocks, `groups` blocks of training text for tr ∇²L; 0 for none. Models of the first
    `seeds` training seeds have tr ∇²L.
    """

    text: str
    blocks: int = Field(64, ge=2)
    pathologies: int = Field(16, ge=0)
    groups: int = Field(8, ge=0)
    seeds: int | None = Field(None, ge=1)
