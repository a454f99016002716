"""What `villani certify` is asked, for certificates of either kind."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import model_validator

from villani.commands.blocks import (
    COMPUTE,
    TEXT,
    ComputeBlock,
    ModelBlock,
    SeedBlock,
    Settings,
    SpecialTokensBlock,
    TextBlock,
    TrustBlock,
    Unused,
)
from villani.commands.option import Option
from villani.errors import InputError, check_positive

if TYPE_CHECKING:
    from villani.dynamics.certificate import ChainPlan
    from villani.dynamics.prequential import UpdateRule

PRIOR = "Prior"
TRAINING = "Training"
CERTIFICATE = "Certificate"


class CertifySettings(TrustBlock, ComputeBlock, SpecialTokensBlock, SeedBlock, TextBlock, ModelBlock, Settings):
    """Train and certify the risk, with noise or in one pass: bounds in nats per token, beside what they compete with.

    Choose all settings before the certified text is looked at, or say with --candidates how many there were.

    Example: villani certify builtin:tiny --steps 100 --weight-decay 0.5,2 --chains 3
    """

    name = "certify"

    micro_tokens: Annotated[int, Option("tokens in one forward pass at most: sets the memory needed", COMPUTE)] = 4096
    held_out: Annotated[str | None, Option("other text to hold against", TEXT, default="the last tenth")] = None
    block: Annotated[int, Option("tokens in a block", TEXT)] = 128
    blocks: Annotated[int | None, Option("certified blocks at most", TEXT, default="all there are")] = None
    prior: Annotated[
        Literal["init", "text", "given"],
        Option(
            "centre of the prior: init, random weights; text, trained on the first part of the text; given, the "
            "model's weights, which by your word never saw the rest",
            PRIOR,
        ),
    ] = "init"
    prior_share: Annotated[float, Option("with --prior text, the share that trains the centre", PRIOR)] = 0.5
    prior_steps: Annotated[int, Option("with --prior text, AdamW steps", PRIOR)] = 500
    kind: Annotated[
        Literal["path", "prequential"],
        Option(
            "path: noisy training, its path and c4 certificates; prequential: one pass, each block scored before it "
            "is trained on, no noise and no complexity, about the iterates",
            CERTIFICATE,
        ),
    ] = "path"
    train: Annotated[str, Option("what moves: all, or a regular expression on names of tensors", TRAINING)] = "all"
    scale: Annotated[Literal["unit", "relative"], Option("noise in units of 1, or of each tensor's size", TRAINING)] = (
        "unit"
    )
    direction: Annotated[Literal["sgd", "momentum", "adam"], Option("of the steps", TRAINING)] = "sgd"
    start: Annotated[Literal["prior", "centre"], Option("c4 needs a start in the prior", TRAINING)] = "prior"
    weight_decay: Annotated[
        list[float],
        Option(
            "λ ≥ 0 towards the centre; several with commas", TRAINING, always=True,
            default="1, with --kind prequential 0.01",
        ),
    ] = []  # fmt: skip
    towards: Annotated[
        Literal["centre", "zero"], Option("with --kind prequential, what decay pulls towards", TRAINING)
    ] = "centre"
    temperature: Annotated[float, Option("s > 0: noise √(ηs) a step, prior variance s/(2λ)", TRAINING, always=True)] = (
        1e-4
    )
    learning_rate: Annotated[
        list[float],
        Option(
            "η; with --kind prequential several with commas", TRAINING, always=True,
            default="0.1, with --kind prequential --direction adam 1e-3",
        ),
    ] = []  # fmt: skip
    warm_up: Annotated[
        int, Option("with --kind prequential, steps over which η rises; it is constant then", TRAINING)
    ] = 0
    steps: Annotated[int, Option("K, steps of a run", TRAINING)] = 200
    batch: Annotated[int, Option("blocks in a step", TRAINING)] = 8
    clip: Annotated[
        float | None,
        Option(
            "largest norm of a direction, with --kind prequential of a gradient; c4 needs one; none for none", TRAINING
        ),
    ] = 1.0
    chains: Annotated[int, Option("J, independent runs at every λ; c4 needs many", CERTIFICATE)] = 1
    delta: Annotated[float, Option("δ: everything holds at once with probability 1 − δ", CERTIFICATE)] = 0.05
    candidates: Annotated[
        int, Option("size of the grid of settings that these were chosen from; δ is divided by it", CERTIFICATE)
    ] = 1
    alpha: Annotated[list[float], Option("prediction smoothing; several with commas", CERTIFICATE)] = [0.01, 0.1]

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        """λ and η by the kind of certificate, where they are not given."""
        if not isinstance(given, dict):
            return given
        prequential = given.get("kind") == "prequential"
        slow = prequential and given.get("direction") == "adam"
        return {"weight_decay": [0.01 if prequential else 1.0], "learning_rate": [1e-3 if slow else 0.1]} | given

    def check(self) -> None:
        """See `Settings.check`."""
        from villani.theory.constants import Smoothing

        self.check_least(steps=1, chains=1, batch=1, seed=0, blocks=1, prior_steps=1, candidates=1)
        for name in ("delta", "prior_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name):g}: expected a number between 0 and 1")
        for alpha in self.alpha:
            Smoothing(2, alpha)
        if self.prior != "given" and not self.model.startswith(("config:", "builtin:")):
            raise InputError(
                f"prior={self.prior}: the weights of {self.model!r} may have seen the text; give random weights "
                "(config:NAME), or --prior given if they were trained on other data"
            )
        for name in ("alpha", "weight_decay", "learning_rate"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"{name}={values}: expected different numbers, at least one")
        if self.kind == "prequential":
            self.rules()
            return
        if len(self.learning_rate) > 1:
            raise InputError(
                f"learning_rate={self.learning_rate}: expected one number; several go with kind=prequential"
            )
        check_positive(learning_rate=self.learning_rate[0])
        for decay in self.weight_decay:
            self.plan(decay)

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if self.prior != "text":
            yield Unused("without --prior text", ("prior_share", "prior_steps"))
        if self.kind == "prequential":
            yield Unused("with --kind prequential", ("scale", "start", "temperature", "steps", "chains"))
        else:
            yield Unused("without --kind prequential", ("towards", "warm_up"))

    def plan(self, weight_decay: float) -> "ChainPlan":
        """What the noisy runs at one λ are going to do."""
        import numpy as np

        from villani.dynamics.certificate import ChainPlan

        rates = np.full(self.steps, self.learning_rate[0])
        return ChainPlan(rates, weight_decay, self.temperature, self.clip, self.start)

    def rules(self) -> "list[UpdateRule]":
        """How the prequential passes move, one at every λ and η."""
        from villani.dynamics.prequential import UpdateRule

        return [
            UpdateRule(rate, decay, self.direction, self.towards, self.clip, self.warm_up)
            for decay in self.weight_decay
            for rate in self.learning_rate
        ]

    @property
    def at_once(self) -> int:
        """Tokens in one pass: blocks are never split."""
        return max(self.block, min(self.micro_tokens, self.batch * self.block))


SETTINGS = CertifySettings
