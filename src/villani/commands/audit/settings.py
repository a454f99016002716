"""What `villani audit` is asked: an audit, or the replay of a witness that an audit left."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import model_validator

from villani.commands.blocks import DESIGN, MODEL, TEXT, StreamBlock, SubjectSettings, Unused
from villani.commands.option import option
from villani.errors import InputError, check_whole

SEARCH, RAYS, REPLAY = "Search for orbits", "Rays", "Replay"  # headings of --help
_NAMED = {"text": "builtin", "seed": 0}  # what an audit takes where nothing is given, and a replay from its witness


class AuditSettings(StreamBlock, SubjectSettings):
    """Is F a Villani function? Four criteria, each with evidence, and a witness of what is refuted.

    Exit code 1 if a --replay does not refute again what its witness claims.

    Example: villani audit gpt2 --text wikitext-103 --weight-decay 0.1 --temperature 1e-3
    """

    name = "audit"

    model: str | None = option(
        None, "as for measure; with --replay, where the model is on this machine", MODEL, argument=True
    )  # type: ignore[assignment]
    model_by_flag: str | None = option(None, "the same as MODEL", MODEL, flags=("--model",), exclude=True)
    text: str | None = option(
        None, "builtin, ptb, wikitext-103, hub:NAME, or UTF-8 files", TEXT, default="builtin or the witness's"
    )  # type: ignore[assignment]
    groups: int = option(18, "a third each chooses orbits, leads the search, and confirms", DESIGN)
    seed: int | None = option(None, "of everything random", DESIGN, default="0 or the witness's")  # type: ignore[assignment]
    weight_decay: float = option(0.1, "λ ≥ 0", DESIGN, always=True)
    temperature: float = option(1e-3, "s > 0, at which criterion (iv) is judged", DESIGN, always=True)
    confirmed: int = option(4, "orbits that are measured again on fresh groups", SEARCH)
    search: int = option(3, "rounds of descent towards a θ where more is refuted; 0 for none", SEARCH)
    rays: list[str] = option(
        ["random", "gradient", "parameters"], "random, gradient, parameters, layer; several with commas; none for none",
        RAYS,
    )  # fmt: skip
    ray_groups: int = option(4, "groups that rays are measured on", RAYS)
    replay: str | None = option(None, "a witness.safetensors to evaluate again", REPLAY, path=True, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, values: Any) -> Any:
        """One model of the two ways to name it; of an audit, the text and seed that nobody gave."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("model") is None and "model_by_flag" in values:
            values["model"] = values.pop("model_by_flag")
        if values.get("replay") is None:
            values |= {name: value for name, value in _NAMED.items() if values.get(name) is None}
        return values

    @property
    def title(self) -> str:
        """See `Settings.title`."""
        return super().title if self.replay is None else f"villani audit --replay {Path(self.replay).name}"

    def check(self) -> None:
        """See `Settings.check`."""
        if self.model_by_flag is not None:
            raise InputError(f"audit: {self.model!r} and --model {self.model_by_flag!r} are both models; give one")
        self.check_least()
        self.check_memory()
        if self.seed is not None:
            check_whole(0, seed=self.seed)
        if self.replay is None:
            if self.model is None:
                raise InputError("audit: give a model, or --replay with a witness")
            self.check_design()

    def check_design(self, parameters: int | None = None) -> None:
        """Refuse an audit that `villani.audit` would refuse; of a θ of so many parameters, once that is known.

        Raises:
            InputError: a number out of range, or numbers that do not go together.
        """
        from villani.criteria.audit import check_audit
        from villani.objective.objective import check_weight_decay

        check_weight_decay(self.weight_decay)
        check_audit(
            self.temperature, groups=self.groups, probes=self.probes, seed=self.seed or 0, confirmed=self.confirmed,
            search=self.search, rays=self.rays, ray_groups=self.ray_groups, finite=self.finite, parameters=parameters,
        )  # fmt: skip

    def unused(self) -> Iterator[Unused]:
        """See `Settings.unused`."""
        if self.replay is not None:
            yield Unused(
                "with --replay, where the witness says",
                (
                    "weight_decay", "temperature", "decay", "groups", "sequences", "block", "probes", "confirmed",
                    "search", "rays", "ray_groups", "finite", "dtype", "special_tokens",
                ),
            )  # fmt: skip

    def command(self) -> str:
        """See `Settings.command`; the seed of an audit is 0 unless it says otherwise."""
        if self.replay is None and self.seed == _NAMED["seed"]:
            return super(AuditSettings, self.model_copy(update={"seed": None})).command()
        return super().command()


SETTINGS = AuditSettings
