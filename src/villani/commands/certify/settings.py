"""What `villani certify` is asked, for certificates of either kind."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

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
from villani.commands.option import option
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

    micro_tokens: int = option(4096, "tokens in one forward pass at most: sets the memory needed", COMPUTE)
    held_out: str | None = option(None, "other text to hold against", TEXT, default="the last tenth")
    block: int = option(128, "tokens in a block", TEXT)
    blocks: int | None = option(None, "certified blocks at most", TEXT, default="all there are")
    prior: Literal["init", "text", "given"] = option(
        "init",
        "centre of the prior: init, random weights; text, trained on the first part of the text; given, the "
        "model's weights, which by your word never saw the rest",
        PRIOR,
    )
    prior_share: float = option(0.5, "with --prior text, the share that trains the centre", PRIOR)
    prior_steps: int = option(500, "with --prior text, AdamW steps; 0 with --prior-drift for random weights", PRIOR)
    prior_drift: bool = option(
        False, "with --prior text, the reference of a path certificate moves with that text's gradients", PRIOR
    )
    drift_batch: int | None = option(
        None, "with --prior-drift, blocks in a gradient of the reference", PRIOR, default="all of the prior's"
    )
    drift_every: int = option(1, "with --prior-drift, steps from one gradient of the reference to the next", PRIOR)
    kind: Literal["path", "prequential"] = option(
        "path",
        "path: noisy training, its path and c4 certificates; prequential: one pass, each block scored before it "
        "is trained on, no noise and no complexity, about the iterates",
        CERTIFICATE,
    )
    iid_documents: bool = option(
        False,
        "with --kind prequential, by your word the documents of the text are independent draws of one law: certifies "
        "a mixture of iterates on new documents",
        CERTIFICATE,
    )
    iterates: int = option(8, "with --iid-documents, weights that the mixture is of; they are kept", CERTIFICATE)
    train: str = option("all", "what moves: all, or a regular expression on names of tensors", TRAINING)
    scale: Literal["unit", "relative"] = option("unit", "noise in units of 1, or of each tensor's size", TRAINING)
    direction: Literal["sgd", "momentum", "adam"] = option("sgd", "of the steps", TRAINING)
    start: Literal["prior", "centre"] = option("prior", "c4 needs a start in the prior", TRAINING)
    weight_decay: list[float] = option(
        [], "λ ≥ 0 towards the centre; several with commas", TRAINING, always=True,
        default="1, with --kind prequential 0.01",
    )  # fmt: skip
    towards: Literal["centre", "zero"] = option("centre", "with --kind prequential, what decay pulls towards", TRAINING)
    temperature: float = option(1e-4, "s > 0: noise √(ηs) a step, prior variance s/(2λ)", TRAINING, always=True)
    learning_rate: list[float] = option(
        [], "η; with --kind prequential several with commas", TRAINING, always=True,
        default="0.1, with --kind prequential --direction adam 1e-3",
    )  # fmt: skip
    warm_up: int = option(0, "with --kind prequential, steps over which η rises; it is constant then", TRAINING)
    steps: int = option(200, "K, steps of a run", TRAINING)
    batch: int = option(8, "blocks in a step", TRAINING)
    clip: float | None = option(
        1.0, "largest norm of a direction, with --kind prequential of a gradient; c4 needs one; none for none", TRAINING
    )
    chains: int = option(1, "J, independent runs at every λ; c4 needs many", CERTIFICATE)
    delta: float = option(0.05, "δ: everything holds at once with probability 1 − δ", CERTIFICATE)
    candidates: int = option(
        1, "size of the grid of settings that these were chosen from; δ is divided by it", CERTIFICATE
    )
    alpha: list[float] = option([0.01, 0.1], "prediction smoothing; several with commas", CERTIFICATE)

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

        self.check_least(
            steps=1, chains=1, batch=1, seed=0, blocks=1, prior_steps=0 if self.prior_drift else 1, candidates=1,
            drift_batch=1, drift_every=1, iterates=1,
        )  # fmt: skip
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
        if self.iid_documents and self.blocks is not None:
            raise InputError(
                f"blocks={self.blocks} with iid_documents: which documents fit would depend on their lengths; leave it "
                "out, or give a text of fewer documents"
            )
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
        if self.kind == "prequential":
            yield Unused("with --kind prequential", ("scale", "start", "temperature", "steps", "chains", "prior_drift"))
        else:
            yield Unused("without --kind prequential", ("towards", "warm_up", "iid_documents"))
        if not self.iid_documents:
            yield Unused("without --iid-documents", ("iterates",))
        if self.prior != "text":
            yield Unused("without --prior text", ("prior_share", "prior_steps", "prior_drift"))
        if not self.prior_drift:
            yield Unused("without --prior-drift", ("drift_batch", "drift_every"))

    def plan(self, weight_decay: float) -> "ChainPlan":
        """What the noisy runs at one λ are going to do."""
        import numpy as np

        from villani.dynamics.certificate import ChainPlan

        rates = np.full(self.steps, self.learning_rate[0])
        return ChainPlan(
            rates, weight_decay, self.temperature, self.clip, self.start, moving_reference=self.prior_drift
        )

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
