"""What `villani constants` is asked."""

from collections.abc import Iterator
from typing import Literal

from villani.commands.blocks import MODEL, ModelBlock, Settings, TrustBlock, Unused
from villani.commands.option import option
from villani.theory.guidance import Run

LAW, GIVEN, OWN = "Law", "Figures of the smoothed loss", "Your own training, to compare with"
ALPHA = 0.1  # prediction smoothing of the certified constant
TIME = 100.0  # length of a run to compare with, Σ learning rates: 100,000 steps of 10⁻³

OWN_RUN = ("optimizer", "momentum", "batch_tokens", "gradient_noise", "steps")  # beside its learning rate


class ConstantsSettings(TrustBlock, ModelBlock, Settings):
    """The claimed and the certified log-Sobolev constant of a model, and how far apart they are.

    Only the shapes of the model matter; no text is read and nothing is measured.

    Example: villani constants gpt2 --weight-decay 0.1,0.01 --temperature 2
    """

    name = "constants"

    weight_decay: list[float] = option([0.1], "λ > 0; several with commas", LAW)
    temperature: list[float] = option([2.0], "s > 0; several with commas; s = 2 is β = 1", LAW)
    alpha: float = option(ALPHA, "prediction smoothing of the certified constant", LAW)
    decay: str = option("all", "what decays; constants need all of it", MODEL)
    time: float = option(
        TIME, "length of a training run, the sum of its learning rates; 100 is 100,000 steps of 0.001", LAW
    )
    curvature: float | None = option(None, "κ with ∇²L ⪰ −κ where it was looked at, L smoothed: C2, estimated", GIVEN)
    gradient_norms: list[float] = option(
        [], "‖∇L‖ where it was looked at, L smoothed; several with commas: C4, estimated", GIVEN
    )
    variance: float | None = option(
        None, "lower confidence limit of a variance u·θ at equilibrium: C9, may refute, statistical", GIVEN
    )

    optimizer: Literal["adamw", "sgd"] = option("adamw", "of your run: adamw, or sgd with L2", OWN)
    learning_rate: float | None = option(None, "η of your run, at its peak: which s it resembles, heuristic", OWN)
    momentum: float = option(0.0, "of your sgd", OWN)
    batch_tokens: float | None = option(None, "predicted tokens in a step of your run", OWN)
    gradient_noise: float | None = option(
        None, "tr Σ of one token's gradient: (naive − unbiased ‖∇L‖²) × tokens of a group, by villani measure", OWN
    )
    steps: int | None = option(None, "of your run", OWN)

    @property
    def own_run(self) -> Run | None:
        """The user's own training, as far as it was told."""
        if self.learning_rate is None:
            return None
        return Run(
            self.optimizer, self.learning_rate, self.momentum, self.batch_tokens, self.gradient_noise, self.steps
        )

    def check(self) -> None:
        """See `Settings.check`."""
        self.check_some("weight_decay", "temperature")
        _ = self.own_run  # which refuses what cannot be

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if self.learning_rate is None:
            yield Unused("without --learning-rate", OWN_RUN)
        elif self.optimizer == "adamw":
            yield Unused("by adamw", ("momentum", "batch_tokens", "gradient_noise"))


SETTINGS = ConstantsSettings
