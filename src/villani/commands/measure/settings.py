"""What `villani measure` is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from villani.commands.blocks import DESIGN, StreamBlock, SubjectSettings, Unused
from villani.commands.option import option
from villani.curvature.ways import Blocks, ProductMethod, Trace, Way
from villani.errors import InputError
from villani.measurement.design import Design, check_temperature

WAY = "Way to the trace"
TARGET = "Wanted error"


class MeasureSettings(StreamBlock, SubjectSettings):
    """Measure Ψ_s and what it is made of at a model's weights, with intervals.

    λ and s enter no measurement: asked again with the same --run and another λ or s, the answer is immediate.

    Example: villani measure gpt2 --text wikitext-103 --weight-decay 0.1,0.01 --temperature 1e-3
    """

    name = "measure"

    weight_decay: list[float] = option([0.1], "λ ≥ 0; several with commas", DESIGN, always=True)
    temperature: list[float] = option([1e-3], "s > 0; several with commas", DESIGN, always=True)
    trace: Trace = option(
        "auto", "way to the Hessian trace; auto: adjoint where every operation has a Taylor rule", WAY
    )
    blocks: Blocks = option("whole", "with --trace taylor, what has its own probe", WAY)
    products: ProductMethod = option(
        "reverse-over-reverse", "with --trace hutchinson, way to Hessian-vector products", WAY
    )
    shares: int = option(6, "groups sampled tensor by tensor too, where --trace taylor tells no tensors apart", WAY)
    deflate: str | None = option(
        None, "with --trace hutchinson, a run of villani spectrum whose eigenvectors are taken exactly", WAY, path=True
    )
    target_error: str | None = option(
        None, "wanted standard error, planned for: a share of the figure, such as 0.05, or abs:NUMBER", TARGET
    )
    target: Literal["hessian_trace", "psi"] = option(
        "hessian_trace", "the figure that --target-error is about; psi: at the first λ and s", TARGET
    )
    max_groups: int = option(4096, "with --target-error, the most groups to measure", TARGET)

    def check(self) -> None:
        """See `Settings.check`."""
        from villani.measurement.plan import START
        from villani.objective.objective import check_weight_decay

        self.check_some("weight_decay", "temperature")
        self.check_memory()
        for value in self.weight_decay:
            check_weight_decay(value)
        for value in self.temperature:
            check_temperature(value)
        if self.target_error is not None:
            for name in ("trace", "products", "blocks", "deflate", "probes", "finite"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise InputError(f"{name}={getattr(self, name)}: with target_error the plan chooses; leave one out")
            least = max(self.groups, START)
            if self.max_groups < least:
                raise InputError(f"max_groups={self.max_groups}: expected at least {least}, which a plan begins with")
            self.wanted()
        elif self.target != "hessian_trace":
            raise InputError(f"target={self.target}: goes with target_error")
        method = "gauss-newton" if self.trace == "auto" else self.trace
        way = Way(method, self.blocks, self.products, deflated=self.deflate is not None)
        Design(self.groups, self.probes, self.seed, self.finite, way=way, shares=self.shares)
        if self.deflate is not None and not Path(self.deflate).is_dir():
            raise InputError(
                f"deflate={self.deflate}: no eigenvectors there; give the run directory of villani spectrum"
            )
        self.check_least(max_groups=1)

    def wanted(self) -> tuple[float, bool]:
        """The wanted error, and whether it is a share of the figure.

        Raises:
            InputError: it is not a number.
        """
        text = self.target_error or ""
        number = text.removeprefix("abs:")
        try:
            return float(number), number == text
        except ValueError:
            raise InputError(
                f"target_error {text!r}: expected a share of the figure, such as 0.05, or abs:NUMBER"
            ) from None

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if self.target_error is None:
            yield Unused("without --target-error", ("max_groups",))
            if self.trace != "hutchinson":
                yield Unused("without --trace hutchinson", ("products",))
        if self.trace != "taylor":
            yield Unused("without --trace taylor", ("shares",))


SETTINGS = MeasureSettings
