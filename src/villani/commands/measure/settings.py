"""What `villani measure` is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from villani.commands.blocks import DESIGN, StreamBlock, SubjectSettings, Unused
from villani.commands.option import Option
from villani.curvature.ways import Blocks, ProductMethod, TraceMethod, Way
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

    weight_decay: Annotated[list[float], Option("λ ≥ 0; several with commas", DESIGN, always=True)] = [0.1]
    temperature: Annotated[list[float], Option("s > 0; several with commas", DESIGN, always=True)] = [1e-3]
    trace: Annotated[TraceMethod, Option("way to the Hessian trace", WAY)] = "gauss-newton"
    blocks: Annotated[Blocks, Option("with --trace taylor, what has its own probe", WAY)] = "whole"
    products: Annotated[ProductMethod, Option("with --trace hutchinson, way to Hessian-vector products", WAY)] = (
        "reverse-over-reverse"
    )
    shares: Annotated[
        int, Option("groups sampled tensor by tensor too, where --trace taylor tells no tensors apart", WAY)
    ] = 6
    deflate: Annotated[
        str | None,
        Option(
            "with --trace hutchinson, a run of villani spectrum whose eigenvectors are taken exactly", WAY, path=True
        ),
    ] = None
    target_error: Annotated[
        str | None,
        Option("wanted standard error, planned for: a share of the figure, such as 0.05, or abs:NUMBER", TARGET),
    ] = None
    target: Annotated[
        Literal["hessian_trace", "psi"],
        Option("the figure that --target-error is about; psi: at the first λ and s", TARGET),
    ] = "hessian_trace"
    max_groups: Annotated[int, Option("with --target-error, the most groups to measure", TARGET)] = 4096

    def check(self) -> None:
        """See `Settings.check`."""
        from villani.measurement.plan import PILOT
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
            least = PILOT + max(self.groups, 3)
            if self.max_groups < least:
                raise InputError(
                    f"max_groups={self.max_groups}: expected at least {least}, the pilot's and those to measure"
                )
            self.wanted()
        elif self.target != "hessian_trace":
            raise InputError(f"target={self.target}: goes with target_error")
        way = Way(self.trace, self.blocks, self.products, deflated=self.deflate is not None)
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
