"""What `villani converge` is asked."""

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, Self

from villani.commands.blocks import COMPUTE, DESIGN, MODEL, TEXT, SubjectSettings, Unused
from villani.commands.exact.settings import cases, check_names
from villani.commands.option import REQUIRED, forms, option
from villani.dynamics.kernel import Kernel, Method, Schedule
from villani.dynamics.start import largest_curvature
from villani.errors import InputError, check_positive
from villani.theory.catalogue import Case

EXACT = "exact:"
CHAINS = "Chains"
POTENTIAL = "Potential"
_OF_MODEL = ("full", "coupled", "psi_groups", "trust_remote_code", "allow_unused", "adapter", "decay")


class ConvergeSettings(SubjectSettings):
    """Run noisy SGD at several λ and s: at which rates its observables settle, and what that proves.

    A chain that diverges is reported and ends; the others go on.

    Example: villani converge exact:tied --weight-decay 0.1 --temperature 0.2
    """

    name = "converge"

    model: str = option(
        REQUIRED, "a model as for measure, or exact:POTENTIAL, a name or expression as for exact", MODEL, argument=True
    )
    groups: int = option(64, "groups of blocks that make up the data set", DESIGN)
    sequences: int = option(4, "blocks in a group, and in a mini-batch", DESIGN)
    probes: int = option(1, hidden=True)
    finite: bool = option(True, hidden=True)
    weight_decay: list[float] = option([], "λ ≥ 0; several with commas; default 0.1", CHAINS, always=True)
    temperature: list[float] = option([], "s > 0; several with commas; default 1e-3", CHAINS, always=True)
    learning_rate: float | None = option(
        None, "step size η; default 1e-3, of a potential a tenth of 1/curvature", CHAINS
    )
    steps: int | None = option(None, "of each chain; default 400, of a potential 4000", CHAINS)
    chains: int | None = option(None, "independent chains; default 4, of a potential 8", CHAINS)
    walkers: int | None = option(None, "of a potential: walkers in each chain; default 64", POTENTIAL)
    method: Method = option("noisy-sgd", "how a chain moves", CHAINS)
    momentum: float = option(0.0, "with noisy-sgd, 0 ≤ μ < 1", CHAINS)
    schedule: Schedule = option("constant", "of step sizes; s stays", CHAINS)
    full: bool = option(False, "gradients of the whole data set, not of mini-batches", CHAINS)
    start: Literal["same", "spread"] = option(
        "same", "spread: odd chains begin at a draw of the prior, or at the mirror image", CHAINS
    )
    log_every: int | None = option(None, "steps between logged observables; default 5", CHAINS)
    psi_every: int = option(0, "steps between measurements of Ψ; 0 for none", CHAINS)
    psi_groups: int = option(6, "groups of such a measurement", CHAINS)
    coupled: bool = option(False, "also two chains with common noise; holds a second model", CHAINS)
    parameters: dict[str, float] = option(
        {}, "NAME=VALUE, a parameter of the potential", POTENTIAL, flags=("--set",), each=True
    )
    dimension: int | None = option(None, "d of the potential", POTENTIAL)

    @property
    def potential(self) -> str | None:
        """The potential's name or expression, if it is about one."""
        return self.model.removeprefix(EXACT) if self.model.startswith(EXACT) else None

    @property
    def batch(self) -> int | None:
        """Blocks in a step of a model's chain; None for all of them, and of a potential."""
        return None if self.full or self.method == "mala" or self.potential is not None else self.sequences

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Chains, walkers in each, and steps between rows, of settings that are `filled`."""
        assert self.chains is not None
        assert self.walkers is not None
        assert self.log_every is not None
        return self.chains, self.walkers, self.log_every

    def cases(self) -> list[Case]:
        """The potential at every λ and s; those of the catalogue where none are given.

        Raises:
            InputError: an s that is not positive, or anything that no potential has.
        """
        assert self.potential is not None
        for s in self.temperature:
            check_positive(temperature=s)
        betas = [2 / s for s in self.temperature]
        return cases(self.potential, self.weight_decay, betas, [self.dimension], parameters=self.parameters)

    def filled(self) -> Self:
        """With a number in every field that was not given.

        Raises:
            InputError: what the numbers of a potential follow from is out of range.
        """
        defaults: dict[str, Any] = {
            "learning_rate": 1e-3, "steps": 400, "chains": 4, "walkers": 1, "log_every": 5, "weight_decay": [0.1],
            "temperature": [1e-3],
        }  # fmt: skip
        if self.potential is not None:
            laws = [one.potential for one in self.cases()]
            steps = 4000 if self.steps is None else self.steps
            rate = self.learning_rate or 0.1 / max(map(largest_curvature, laws))
            defaults = {
                "learning_rate": float(f"{rate:.2g}"), "steps": steps, "chains": 8, "walkers": 64,
                "log_every": max(1, steps // 400),
                "weight_decay": list(dict.fromkeys(law.weight_decay for law in laws)),
                "temperature": list(dict.fromkeys(2 / law.beta for law in laws)),
            }  # fmt: skip
        return self.model_copy(
            update={name: value for name, value in defaults.items() if getattr(self, name) in (None, [])}
        )

    def kernel(self, weight_decay: float, temperature: float) -> Kernel:
        """How chains move at one λ and s."""
        assert self.learning_rate is not None
        assert self.steps is not None
        return Kernel(
            weight_decay, temperature, self.learning_rate, self.steps, self.method, self.momentum, self.schedule
        )

    def check(self) -> None:
        """See `Settings.check`."""
        if self.potential is None and (self.parameters or self.dimension is not None or self.walkers is not None):
            raise InputError(f"model {self.model}: --set, --dimension and --walkers go with exact:POTENTIAL")
        check_names(self.parameters)
        for name in ("probes", "finite"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise InputError(f"{name}: does not apply; the groups are all the data, and gradients need no probes")
        settings = self.filled()
        settings.check_least(groups=1, chains=1, walkers=1, log_every=1, psi_every=0, psi_groups=3, seed=0, steps=1)
        for decay, s in product(settings.weight_decay, settings.temperature):
            settings.kernel(decay, s)
        if self.psi_every and self.potential is not None:
            raise InputError("psi_every: Ψ of a potential is exact and logged anyway; leave it out")
        if self.start == "spread" and self.potential is None and 0 in settings.weight_decay:
            raise InputError("start=spread with weight_decay=0: there is no prior N(0, s/(2λ)) to begin at")

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if self.potential is None:
            yield Unused("for a model", ("walkers", "parameters", "dimension"))
        else:
            groups = {name: form.option.group for name, form in forms(type(self)).items() if name != "seed"}
            textual = (name for name, group in groups.items() if group in (TEXT, DESIGN, COMPUTE))
            yield Unused("for a potential", (*textual, *_OF_MODEL))
        if not self.psi_every:
            yield Unused("without --psi-every", ("psi_groups",))


SETTINGS = ConvergeSettings
