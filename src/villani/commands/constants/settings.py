"""What `villani constants` is asked."""

from villani.commands.blocks import MODEL, ModelBlock, Settings, TrustBlock
from villani.commands.option import option

LAW, GIVEN = "Law", "Figures of the smoothed loss"
ALPHA = 0.1  # prediction smoothing of the certified constant
TIME = 100.0  # length of a run to compare with, Σ learning rates: 100,000 steps of 10⁻³


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

    def check(self) -> None:
        """See `Settings.check`."""
        self.check_some("weight_decay", "temperature")


SETTINGS = ConstantsSettings
