"""The page of an audit: four verdicts with their evidence, rays and orbits side by side; and that of a replay."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from villani.commands.audit import figures
from villani.commands.audit.record import AuditRecord, ReplayRecord
from villani.commands.audit.tables import CRITERIA, failing_orbit, outcomes, tables, walk_rows, worst_orbit, worst_walk
from villani.commands.constants import page as theory
from villani.commands.measure.figures import ray
from villani.outwards import upper
from villani.report.elements import Folded
from villani.report.estimates import uncertain
from villani.report.numbers import format_number, listed
from villani.report.origin import cost_words
from villani.report.page import Pictures
from villani.report.terminal import print_findings, say, table

__all__ = ["exit_code", "findings", "headline", "limits", "pictures", "show", "tables"]


def headline(record: AuditRecord | ReplayRecord) -> str:
    """One sentence a practitioner understands."""
    if isinstance(record, ReplayRecord):
        return "The witness refutes again." if record.reproduced else "The witness does not refute again."
    refuted = [name.split(" ")[0] for name, outcome in outcomes(record).items() if outcome.verdict == "refuted"]
    where = f"λ = {format_number(record.objective.weight_decay)}"
    if not refuted:
        if record.villani:
            return f"F is a Villani function at {where}: all four criteria hold."
        verdicts = {name.split(" ")[0]: outcome.verdict for name, outcome in outcomes(record).items()}
        proved = [name for name, verdict in verdicts.items() if verdict == "holds"]
        rest = [name for name in verdicts if name not in proved]
        holding = f"{listed(proved)} {'holds' if len(proved) == 1 else 'hold'}, and " if proved else ""
        return (
            f"It is undecided whether F is a Villani function at {where}: {holding}{listed(rest)} "
            f"{'is' if len(rest) == 1 else 'are'} neither proved nor refuted."
        )
    above = record.differential_evidence.refuted_above
    if "(iv)" not in refuted or above is None:
        return f"F is not a Villani function at {where}: {_are_refuted(refuted)}."
    others, here = refuted[:-1], f"your s = {format_number(record.temperature)}"
    if record.temperature > above:
        here = f", {here} among them"
    else:
        here = f"; at {here} {'(iv) is not refuted' if others else 'nothing is refuted'}"
    also = f"{_are_refuted(others)}, and " if others else ""
    return f"F is not a Villani function at {where}: {also}(iv) fails for every s > {upper(above, 3)}{here}."


def findings(record: AuditRecord | ReplayRecord) -> dict[str, str]:
    """Title → paragraph."""
    if isinstance(record, ReplayRecord):
        return {f"{i}": sentence for i, sentence in enumerate(record.sentences, 1)}
    criteria = zip(CRITERIA, outcomes(record).items(), strict=True)
    gap, constants = record.spectral_gap, record.constants
    return {
        **{f"{name}: {one.verdict}": f"{_sentence(one.reason)}{_more(record, key)}" for key, (name, one) in criteria},
        Folded("What still holds without (iv)"): gap.text if gap else "",
        "Why rays look fine": _rays_words(record),
        **{Folded(f"What would rescue (iv): {rescue.name}"): rescue.text for rescue in record.rescues},
        Folded("Constants"): constants.points[0].sentence if constants else "",
    }


def _more(record: AuditRecord, key: str) -> str:
    if key == "smoothness" and record.smoothness.verdict == "holds":
        norms = record.smoothness_evidence.normalisations
        text = f" {record.smoothness_evidence.operations} operations were examined."
        if norms:
            least = min(norm.eps for norm in norms)
            text += (
                f" {len(norms)} normalisations are smooth only as far as ε allows: with the smallest, "
                f"ε = {format_number(least)}, Jacobians reach {upper(least**-0.5, 3)} and second derivatives "
                f"{upper(1 / least, 3)}, gains apart."
            )
        return text
    if key == "tails" and record.coverage_evidence.log_integral_bound is not None:
        bound = upper(record.coverage_evidence.log_integral_bound, 4)
        return f" log ∫ exp(−2F/s) ≤ {bound} at this s (certified)."
    if key == "differential_growth" and record.differential_growth.verdict == "not refuted":
        return " Finding nothing proves nothing."
    return ""


def _rays_words(record: AuditRecord) -> str:
    rays, left_out = record.differential_evidence.rays, record.differential_evidence.rays_left_out or {}
    skipped = "".join(f" The ray along {name} was left out: {why}." for name, why in left_out.items())
    if not rays:
        return f"No ray was walked along.{skipped} Rays cannot decide (iv) either way."
    growing = [ray for ray in rays if ray.psi[-1].value > 0 and ray.psi[-1].value > ray.psi[0].value]
    text = (
        f"On {len(growing)} of {len(rays)} straight rays Ψ grows as far as was looked, "
        "as a function that satisfies (iv) would. Part of that is the exact term λ²‖mθ‖²/s, which is quadratic on "
        "every ray whatever the network. Rays cannot decide (iv): the curves on which it fails bend."
    )
    straight = [ray for ray in rays if ray.direction.startswith("random")]
    if straight:
        mean = sum(ray.fit.quadratic.value for ray in straight) / len(straight)
        text += (
            f" Along random rays the fitted coefficient of r² is {format_number(mean, 3)} on average, that of the "
            f"exact term {format_number(straight[0].exact_quadratic, 3)}."
        )
    walk = worst_walk(record)
    if walk and walk[-1].measured.value < walk[0].measured.value and growing:
        text += (
            f" On the orbit beside them, through the same {'or a nearby ' if worst_orbit(record).moved else ''}weights "
            f"and with the same loss, Ψ goes from {uncertain(walk[0].measured)} to {uncertain(walk[-1].measured)}."
        )
    return text + skipped


def pictures(record: AuditRecord | ReplayRecord) -> Pictures:
    """Name → title, figure, caption; rays and orbits stand side by side."""
    if isinstance(record, ReplayRecord):
        return {"side-orbit": figures.orbit(record.walk, record.temperature)} if record.walk else {}
    rays, orbits = record.differential_evidence.rays, record.differential_evidence.orbits
    walk, s = worst_walk(record), record.temperature
    points = [*zip(rays[0].radii, rays[0].psi, strict=True)] if rays else []
    above, failing = record.differential_evidence.refuted_above, failing_orbit(record)
    bounded = any(orbit.threshold.value is not None for orbit in orbits)
    beside = "rays" if failing else "side-rays"  # beside the walk stands what shows the failure, else what hides it
    return {
        "side-fails": figures.failure(failing, above, s) if failing and above else None,
        "side-orbit": figures.orbit(walk, s, orbits[0]) if walk else None,
        beside: ("On straight rays: growth", figures.rays(rays), _RAYS_CAPTION) if rays else None,
        "thresholds": (_THRESHOLDS, figures.thresholds(orbits, s), _THRESHOLDS_CAPTION) if bounded else None,
        "ray": (f"Part by part along the ray “{rays[0].direction}”", ray(points), _RAY_CAPTION) if rays else None,
        "constants": theory.model_picture(record.constants) if record.constants else None,
    }


_RAYS_CAPTION = "Ψ at θ + r·u; bars are intervals. The same λ, s, model and text as on orbits, on fewer groups."
_THRESHOLDS = "Above which s does (iv) fail?"
_THRESHOLDS_CAPTION = (
    "s* of the orbits; a bar reaches up to its confidence bound, (iv) is refuted for every s to the right of it. "
    "Green: confirmed on fresh groups, with a bound; hollow and grey: without a bound, or screened only, and no "
    "evidence."
)
_RAY_CAPTION = "Each part of Ψ by itself; the data-dependent part is Ψ − λ²‖mθ‖²/s + λ·d_m."
_LIMITS = (
    "The criteria are those of the preprint's abstract (arXiv 2605.06599), read as stated there. Its proofs were not "
    "available and may carry hypotheses, such as bounded weights or frozen gains, under which they hold.",
    "A criterion that is refuted breaks the route from it to a guarantee, and not the guarantee: (iv) is sufficient "
    "for a spectral gap, not necessary.",
)
_AUDIT_LIMITS = (
    "That a criterion is not refuted proves nothing. Orbits were sought among the rescalings that the traced loss "
    "shows, at the given θ and at those that the search led to: s* is the smallest found, not the smallest of all.",
    "Bounds of s* hold at their confidence for all confirmed orbits together; those of screened ones do not count.",
    "Certified means proved on the traced graph in real arithmetic; floating point rounds.",
)


def limits(record: AuditRecord | ReplayRecord) -> list[str]:
    """What the page does not prove."""
    return [*_LIMITS] if isinstance(record, ReplayRecord) else [*_LIMITS, *_AUDIT_LIMITS]


def show(record: AuditRecord | ReplayRecord, directory: Path, console: Console) -> None:
    """The answer with its reasons, or what a witness claims and what came out; and Ψ along the worst orbit."""
    print_findings(console, headline(record), findings(record))
    if walk := record.walk if isinstance(record, ReplayRecord) else worst_walk(record):
        console.print(table(walk_rows(walk)))
    if isinstance(record, ReplayRecord):
        return
    if record.cost:
        say(console, cost_words(record.cost))
    if record.witness:
        say(console, "The witness: villani audit --replay ", path=directory / record.witness)


def exit_code(record: AuditRecord | ReplayRecord) -> int:
    """1 for a witness that does not refute again."""
    return int(isinstance(record, ReplayRecord) and not record.reproduced)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _are_refuted(names: Sequence[str]) -> str:
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'} refuted"
