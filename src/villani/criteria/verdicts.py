"""How a criterion comes out."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "refuted", "not refuted", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """A verdict with its reason.

    Attributes:
        verdict: `holds` (certified) · `refuted` (with a witness to evaluate again) · `not refuted` (nothing was
            found, which proves nothing) · `unknown` (it could not be examined).
        reason: one or two sentences, with what was tried where nothing was found.
    """

    verdict: Verdict
    reason: str
