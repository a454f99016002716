"""What `villani demo` is asked."""

from villani.commands.blocks import Settings
from villani.commands.option import option
from villani.errors import InputError


class DemoSettings(Settings):
    """Train a small GPT-Neo on text that Python carries, measure it at several λ and s and along a ray.

    Example: villani demo --steps 300 --run runs/demo
    """

    name = "demo"

    steps: int = option(1000, "training steps", always=True)
    seed: int = option(0, "of everything random", always=True)

    def check(self) -> None:
        """See `Settings.check`."""
        if self.steps < 1 or self.seed < 0:
            raise InputError(f"steps={self.steps}, seed={self.seed}: expected steps ≥ 1 and seed ≥ 0")


SETTINGS = DemoSettings
