"""From an audit in Python to its record and rows."""

from tests.criteria.test_orbits import binary, factors
from villani.commands.audit.results import audit_record, record, rows
from villani.criteria.audit import audit
from villani.work.records import CONFIDENCE


def test_the_record_says_what_the_audit_says():
    """xy on two factors: (iv) fails, on the orbit (Rx, y/R)."""
    result = audit(factors(binary(0.5), 0.0, 3.0, weight_decay=0.1), 0.05, search=0, rays=("random",), loss_bound=0.0)
    made = record(result, result.origin)
    assert made.villani is False
    assert {name: getattr(made, name).verdict for name in result.outcomes} == {
        name: outcome.verdict for name, outcome in result.outcomes.items()
    }
    worst, orbit = result.differential.findings[0], made.differential_evidence.orbits[0]
    names = [p.name for p in result.origin.parameters]
    assert orbit.moved == [names[i] for i in worst.moved]
    assert orbit.threshold.value == worst.threshold.value
    assert made.differential_evidence.refuted_above == result.differential.refuted_above
    for ray in made.differential_evidence.rays:
        of_python = result.rays[ray.direction].psi(0.1, temperature=0.05).psi
        assert [(one.value, one.sem, one.interval) for one in ray.psi] == [
            (one.value, one.sem, one.interval(CONFIDENCE)) for one in of_python
        ]
    assert made.witness is None
    assert [row["verdict"] for row in rows(made)] == [outcome.verdict for outcome in result.outcomes.values()]
    assert [row["reason"] for row in rows(made)] == [outcome.reason for outcome in result.outcomes.values()]
    again = audit_record(
        result, 0.1, 0.05, result.origin, model=made.model, objective=made.objective, text=made.text,
        design=made.design, constants=made.constants, witness=None, provenance=made.provenance,
    )  # fmt: skip
    assert again == made
