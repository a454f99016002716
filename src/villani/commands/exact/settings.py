"""What `villani exact` is asked."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from villani.commands.blocks import Settings
from villani.commands.option import option, written
from villani.errors import InputError, check_positive
from villani.theory.catalogue import Case, case
from villani.theory.potential import Shape
from villani.work.ledger import check_writable

LAW, RUN = "Potential", "Run"
Axis = Literal["weight_decay", "temperature", "dimension"]


class ExactSettings(Settings):
    """The exact truth about a low-dimensional potential, beside every bound that theory offers for it.

    Without a potential it lists the names that there are. What is not given is the default of the potential.

    Example: villani exact ce1 --dimension 5,10,15 --set a=20
    """

    name = "exact"

    potential: str | None = option(
        None, "name, or L as an expression such as 'log(1+exp(-3*w))'; none: list the names", argument=True
    )
    weight_decay: list[float] = option([], "λ ≥ 0; several with commas", LAW)
    temperature: list[float] = option([], "s > 0; several with commas", LAW)
    beta: list[float] = option([], "β = 2/s, instead of --temperature", LAW)
    dimension: list[int] = option([], "d; several with commas; `d` in an expression", LAW)
    parameters: dict[str, float] = option(
        {}, "NAME=VALUE, a parameter of the potential", LAW, flags=("--set",), each=True
    )
    shape: Shape | None = option(None, "how L extends to d dimensions; default ridge: Gaussian elsewhere", LAW)
    digits: int | None = option(None, "wanted of C_P; default 8, on planes 6", LAW)
    all: bool = option(False, "recompute the reference values of the theory")
    output: str | None = option(None, "write the page to this file too", RUN, path=True)

    @property
    def about(self) -> str:
        """See `Settings.about`."""
        return "--all" if self.all else self.potential or ""

    @property
    def lists(self) -> bool:
        """See `Settings.lists`."""
        return self.potential is None and not self.all

    @property
    def betas(self) -> list[float]:
        """β, from whichever of the two was given.

        Raises:
            InputError: both were, or s is not positive.
        """
        if self.temperature and self.beta:
            raise InputError("temperature and beta say the same (β = 2/s): give one")
        for s in self.temperature:
            check_positive(temperature=s)
        return self.beta or [2 / s for s in self.temperature]

    @property
    def varied(self) -> Axis | None:
        """Which of λ, s and d has several values.

        Raises:
            InputError: more than one of them.
        """
        lists: list[tuple[Axis, Sequence[float]]] = [
            ("weight_decay", self.weight_decay), ("temperature", self.betas), ("dimension", self.dimension),
        ]  # fmt: skip
        several = [name for name, values in lists if len(values) > 1]
        if len(several) > 1:
            raise InputError(f"{' and '.join(several)} have several values: vary one of them at a time")
        return several[0] if several else None

    @property
    def assignments(self) -> list[str]:
        """The parameters as NAME=VALUE, as settings.toml and a ledger have them."""
        return [f"{name}={written(value)}" for name, value in self.parameters.items()]

    def check(self) -> None:
        """See `Settings.check`."""
        law = (self.weight_decay, self.temperature, self.beta, self.dimension, self.parameters, self.shape, self.digits)
        given = any(value not in ([], {}, None) for value in law)
        if self.potential is None and (given or (self.output is not None and not self.all)):
            raise InputError("exact: options need a potential; give a name or an expression, or none to list the names")
        if self.all and self.potential is not None:
            raise InputError(f"all=True: recomputes every reference value; leave out {self.potential!r}")
        check_names(self.parameters)
        _ = self.varied  # refuses two axes, and s and β at once
        if self.output is not None:
            check_writable(Path(self.output))


def cases(
    name: str, weight_decay: Sequence[float], beta: Sequence[float], dimension: Sequence[int | None], **more: Any
) -> list[Case]:
    """A potential at every λ, β and d; those of the catalogue where none are given. See `case`."""
    axes: list[Sequence[Any]] = [weight_decay or [None], beta or [None], dimension or [None]]
    return [case(name, weight_decay=decay, beta=b, dimension=d, **more) for decay, b, d in product(*axes)]


def check_names(parameters: Mapping[str, float]) -> None:
    """Refuse parameters that no expression could name.

    Raises:
        InputError: one is.
    """
    for name, value in parameters.items():
        if not name.isidentifier():
            raise InputError(f"--set {f'{name}={written(value)}'!r}: expected NAME=VALUE")


SETTINGS = ExactSettings
