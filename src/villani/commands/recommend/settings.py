"""What `villani recommend` is asked, and what any sweep over λ trains."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, get_args

from pydantic import model_validator

from villani.choice.rules import RULES
from villani.commands.blocks import (
    DESIGN,
    TEXT,
    ConsentBlock,
    DecayBlock,
    DeviceBlock,
    ModelBlock,
    SeedBlock,
    Settings,
    SpecialTokensBlock,
    TextBlock,
    TrustBlock,
    Unused,
)
from villani.commands.option import REQUIRED, option, written
from villani.errors import InputError, check_positive
from villani.theory.constants import Smoothing

TRAINING, RULE = "Training", "Rules"
OptimizerName = Literal["sgd", "noisy-sgd", "adamw"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
TrainedName = Literal[OptimizerName, "adamw-start"]  # of a sweep; the last decays towards where training began
CellKey = tuple[TrainedName, float, int]  # optimiser, λ, training seed
GRID = [0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]
RATES = {"sgd": 0.1, "noisy-sgd": 0.5, "adamw": 2e-3}  # η for random weights
TUNING = {"optimizers": ["adamw"], "seeds": 2, "steps": 100}  # of a checkpoint, where nobody says
TEMPERATURE = 1e-6
ALL = list(RULES)
_grid = partial(
    option, help="λ ≥ 0 as torch's optimiser takes it, several with commas; grid: 0 and 1e-4 to 10", group=TRAINING,
    always=True, names={"grid": GRID},
)  # fmt: skip
_steps = partial(option, help="of each training run", group=TRAINING)
_batch = partial(option, help="blocks in a step", group=TRAINING)


class SweepSettings(
    TrustBlock, DeviceBlock, SpecialTokensBlock, SeedBlock, DecayBlock, TextBlock, ModelBlock, Settings
):
    """What is trained, on what, and how. λ is what torch's optimiser calls weight_decay.

    Random weights are drawn anew for every training seed; a checkpoint is the same start for all.
    """

    name = "sweep"
    least: ClassVar[dict[str, int]] = {
        "block": 2, "seeds": 1, "steps": 1, "batch": 1, "evaluate_every": 0, "train_blocks": 1, "held_out_blocks": 2,
        "seed": 0, "threads": 1,
    }  # fmt: skip

    held_out: str | None = option(None, "other text to judge by", TEXT, default="the last tenth")
    block: int = option(128, "tokens in a block", DESIGN)
    optimizers: list[TrainedName] = option(
        [*OPTIMIZERS], "sgd (L2), noisy-sgd, adamw; several with commas", TRAINING,
        flags=("--optimizers", "--optimizer"),
    )  # fmt: skip
    weight_decay: list[float] = _grid(REQUIRED)
    seeds: int = option(3, "training seeds: order of batches, and weights where they are random", TRAINING)
    steps: int = _steps(REQUIRED)
    batch: int = _batch(REQUIRED)
    learning_rate: dict[str, float] = option(
        REQUIRED, "η at its peak: one number, or sgd=0.1,adamw=2e-3", TRAINING,
        default="sgd 0.1, noisy-sgd 0.5, adamw 2e-3; of a checkpoint what its own files say, or 0.01, 0.03, 5e-5",
    )  # fmt: skip
    momentum: float = option(0.9, "of sgd", TRAINING)
    temperature: float | None = option(None, "s > 0 of noisy-sgd", TRAINING, default="1e-6")
    clip: float | None = option(1.0, "largest norm of a step's gradient; none for none", TRAINING)
    schedule: Literal["warm-up-cosine", "constant"] = option("warm-up-cosine", "of learning rates", TRAINING)
    evaluate_every: int = option(0, "steps between points of the curves; 0: start and end", TRAINING)
    train_blocks: int | None = option(None, "train on the first so many blocks", DESIGN, default="all")
    held_out_blocks: int | None = option(256, "judge by at most so many blocks; none: all", DESIGN)
    alpha: float = option(0.1, "prediction smoothing of the bounds", RULE)

    @property
    def from_scratch(self) -> bool:
        """Whether training starts at random weights."""
        return _random(self.model)

    @property
    def towards_zero(self) -> list[OptimizerName]:
        """Optimisers whose decay goes towards zero, which rules are about."""
        return [name for name in self.optimizers if name != "adamw-start"]

    @property
    def training_seeds(self) -> range:
        """Seeds of training runs."""
        return range(self.seed, self.seed + self.seeds)

    def check(self) -> None:
        """See `Settings.check`."""
        self.check_least()
        check_grid("weight_decay", self.weight_decay)
        if not self.optimizers or len(set(self.optimizers)) < len(self.optimizers):
            raise InputError(f"optimizers={self.optimizers}: expected different ones of {', '.join(OPTIMIZERS)}")
        self._check_rates()
        rates = self.learning_rate
        if "adamw-start" in self.optimizers and rates.get("adamw-start") != rates.get("adamw"):
            raise InputError(
                "learning_rate: adamw-start goes with adamw at the same rate, since their run at λ = 0 is one; add "
                "adamw, or give both one rate"
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum={self.momentum:g}: expected a number in [0, 1)")
        if self.held_out == self.text:
            raise InputError(f"held_out={self.held_out!r}: that is the text that is trained on; give another, or none")
        if ("noisy-sgd" in self.optimizers) is (self.temperature is None):
            raise InputError(f"temperature={self.temperature}: goes with noisy-sgd, which needs one")
        for name in ("temperature", "clip"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        Smoothing(2, self.alpha)

    def _check_rates(self) -> None:
        if stray := self.learning_rate.keys() - set(self.optimizers):
            raise InputError(f"learning_rate: one for {sorted(stray)[0]!r}, which is not among the optimizers")
        for name in self.optimizers:
            if name in self.learning_rate:
                check_positive(**{f"learning rate of {name}": self.learning_rate[name]})
            elif self._rates_complete:
                raise InputError(f"learning_rate: none for {name}")

    @property
    def _rates_complete(self) -> bool:
        """Whether every optimiser's rate stands here, and none is looked up beside the model."""
        return True


def run_of(cell: CellKey) -> CellKey:
    """The training run of a cell: without decay there is nothing that it could go towards."""
    optimizer, decay, seed = cell
    return ("adamw" if optimizer == "adamw-start" and decay == 0 else optimizer, decay, seed)


def check_grid(name: str, grid: Sequence[float]) -> None:
    """Refuse λ that are no grid."""
    from villani.objective.objective import check_weight_decay

    if len(grid) < 2:
        raise InputError(f"{name}={grid}: a grid needs at least 2 values")
    if repeated := [value for value in grid if grid.count(value) > 1]:
        raise InputError(f"{name}: {repeated[0]:g} is given twice")
    for value in grid:
        check_weight_decay(value)


def _random(model: Any) -> bool:
    """Whether a model has random weights, and is no checkpoint."""
    return str(model).startswith(("config:", "builtin:"))


class RecommendSettings(ConsentBlock, SweepSettings):
    """Which weight decay? Train over a grid of λ, and see where rules of thumb and of theory would have led.

    Fix the grid before the held-out text is looked at. Cost: optimisers × λ × seeds training runs. A checkpoint is
    tuned by AdamW alone, with 2 seeds of 100 steps, unless you say otherwise.

    Example: villani recommend config:gpt-neo-125m?layers=2 --text ptb --optimizers adamw --steps 500
    """

    name = "recommend"

    weight_decay: list[float] = _grid(GRID)
    steps: int = _steps(300)
    batch: int = _batch(8)
    rules: list[str] = option(ALL, "which rules to ask, several with commas; all for all", RULE, names={"all": ALL})
    verify_rules: bool = option(False, "train at the rules' own λ too, not only on the grid", RULE)
    audit: str | None = option(
        None, "a run of villani audit, for the guard", RULE, path=True, default="a short audit at the start"
    )
    delta: float = option(0.05, "δ: all bounds hold at once with probability 1 − δ", RULE)
    keep_weights: bool = option(False, "keep the weights of every training run, in RUN/models", TRAINING, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Optimisers, learning rates and a temperature; a checkpoint's rates are looked up when it is read."""
        if not isinstance(values, dict):
            return values
        random, rates = _random(values.get("model")), values.get("learning_rate", {})
        filled = {} if random else cls._of_checkpoint(rates) | values
        named = (filled or values).get("optimizers", OPTIMIZERS)
        several = named if isinstance(named, list | tuple) else [named]
        optimizers = [name for name in several if isinstance(name, str) and name in RATES]
        if isinstance(rates, int | float):
            rates = {"": rates}
        if isinstance(rates, dict) and "" in rates:
            rates = dict.fromkeys(optimizers, rates[""])
        elif isinstance(rates, dict):
            for name in rates:
                if name not in optimizers:
                    value = written(rates[name])
                    raise InputError(
                        f"--learning-rate '{name}={value}': expected NAME=VALUE with a name out of "
                        f"{', '.join(optimizers)}"
                    )
            rates = ({name: RATES[name] for name in optimizers} if random else {}) | rates
        filled["learning_rate"] = rates
        if values.get("temperature") is None and "noisy-sgd" in optimizers:
            filled["temperature"] = TEMPERATURE
        return values | filled

    @classmethod
    def _of_checkpoint(cls, rates: Any) -> dict[str, Any]:
        """What is trained of a checkpoint unless somebody says otherwise: `TUNING`, by the optimisers with a rate."""
        named = [name for name in OPTIMIZERS if name in rates] if isinstance(rates, Mapping) else []
        return {**TUNING, "optimizers": named or TUNING["optimizers"]}

    def assumed(self) -> Mapping[str, Any]:
        """See `Settings.assumed`."""
        return {} if self.from_scratch else self._of_checkpoint(self.learning_rate) | {"learning_rate": {}}

    @property
    def _rates_complete(self) -> bool:
        return self.from_scratch

    def check(self) -> None:
        """As of a sweep, and of what is asked about it."""
        if "adamw-start" in self.optimizers:
            raise InputError("optimizers: adamw-start is of villani study paper; the rules are about decay towards 0")
        super().check()
        if not 0 < self.delta < 1:
            raise InputError(f"delta={self.delta:g}: expected a number between 0 and 1")
        if unknown := [rule for rule in self.rules if rule not in RULES]:
            raise InputError(f"--rules {unknown[0]!r}: unknown; expected {', '.join(RULES)}")
        if len(set(self.rules)) < len(self.rules):
            raise InputError(f"rules={self.rules}: expected different ones")

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if "sgd" not in self.optimizers:
            yield Unused("without sgd", ("momentum",))
        if "guard" not in self.rules:
            yield Unused("without the rule guard", ("audit",))


SETTINGS = RecommendSettings
