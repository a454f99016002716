"""What `villani spectrum` is asked."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from villani.commands.blocks import COMPUTE, DESIGN, MODEL, SubjectSettings, Unused
from villani.commands.option import option
from villani.errors import InputError

if TYPE_CHECKING:
    from villani.curvature.lanczos import Ends

ENDS = "Both ends"
DENSITY = "Density and layers"


class SpectrumSettings(SubjectSettings):
    """Eigenvalues of the Hessian at both ends with bounds, the density between them, and where eigenvectors live.

    Example: villani spectrum gpt2 --text wikitext-103 --top 5 --bottom 2 --learning-rate 0.1
    """

    name = "spectrum"

    groups: int = option(4, "groups that make up the matrix", DESIGN)
    probes: int = option(1, hidden=True)
    weight_decay: float = option(0.1, "λ ≥ 0", DESIGN, always=True)
    operator: Literal["hessian", "gauss-newton"] = option(
        "hessian", "the whole Hessian, or its Gauss–Newton part", MODEL
    )
    matrix: Literal["loss", "objective"] = option(
        "loss", "loss: of ∇²L; objective: of ∇²F, with λ on the decayed coordinates", MODEL
    )
    top: int = option(10, "how many of the largest eigenvalues", ENDS)
    bottom: int = option(4, "how many of the smallest", ENDS)
    tolerance: float = option(1e-3, "residual wanted, over the largest |eigenvalue| of its end", ENDS)
    basis: int | None = option(None, "vectors before a restart; default 2(top + bottom) + 20", ENDS)
    most: int = option(1000, "products at most", ENDS)
    density_probes: int = option(4, "probes for the density; 0 for none", DENSITY)
    density_steps: int = option(40, "products for each", DENSITY)
    density_shares: int = option(1, "parts of the data, each with its own probes: errors then cover data too", DENSITY)
    held_out: int = option(0, "more groups, for uᵀHu of the eigenvectors on fresh data", ENDS)
    layers: bool = option(False, "the diagonal block of every layer too", DENSITY)
    layer_steps: int = option(12, "products for each of two probes on a block", DENSITY)
    learning_rate: float | None = option(None, "η, to compare λ₁(∇²F) with 2/η", ENDS)
    micro_tokens: int = option(128, "tokens in one product at most: sets the memory needed", COMPUTE)
    memory: float = option(8.0, "GiB that the process may take; the rest goes to disk", ENDS)

    @property
    def ends(self) -> "Ends":
        """Which eigenpairs are wanted."""
        from villani.curvature.lanczos import Ends

        return Ends(self.top, self.bottom, self.tolerance, self.most, self.basis)

    @property
    def columns(self) -> int:
        """Vectors of θ's size that a basis has before a restart."""
        return self.basis or min(2 * (self.top + self.bottom) + 20, self.most)

    def check(self) -> None:
        """See `Settings.check`."""
        from villani.objective.objective import check_weight_decay

        check_weight_decay(self.weight_decay)
        self.ends.check()
        self.check_least(groups=1, density_probes=0, density_steps=2, density_shares=1, held_out=0, layer_steps=2)
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: expected a non-negative integer")
        if self.most < self.top + self.bottom:
            raise InputError(f"most={self.most}: expected at least {self.top + self.bottom}, one product an eigenpair")
        self._check_data()
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate={self.learning_rate}: expected a finite number > 0")
        if self.learning_rate is not None and self.operator != "hessian":
            raise InputError("learning_rate: 2/η is a threshold for the Hessian; use operator hessian")
        if not 0 < self.memory < float("inf"):
            raise InputError(f"memory={self.memory}: expected a number of GiB > 0")
        if self.probes != 1:
            raise InputError("probes: does not apply; see density_probes")

    def _check_data(self) -> None:
        """Refuse shares and held-out groups that the data do not have, or that give no error."""
        if self.density_probes == 1 and self.density_shares == 1:
            raise InputError("density_probes=1: expected at least 2 for an error bar, or 0 for no density")
        if self.density_shares > self.groups:
            raise InputError(f"density_shares={self.density_shares}: expected at most groups={self.groups}")
        if self.density_shares > 1 and self.finite:
            raise InputError("density_shares: with finite=True the groups are all the data, and there is no data noise")
        if 0 < self.held_out < 3:
            raise InputError(f"held_out={self.held_out}: expected at least 3 for an interval, or 0 for none")
        if self.held_out and self.finite:
            raise InputError("held_out: with finite=True there are no other data")

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if not self.layers:
            yield Unused("without --layers", ("layer_steps",))
        if self.density_probes == 0:
            yield Unused("with --density-probes 0", ("density_steps",))


SETTINGS = SpectrumSettings
