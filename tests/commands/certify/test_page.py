"""What a reader of certificates sees: the least bound, whose risk it is, what was refused, what does not follow."""

import pytest

from tests.commands.synthetic import made, told
from villani.commands.certify.record import (
    BoundRecord,
    CertificatePoint,
    CertificateRecord,
    PassPoint,
    PrequentialRecord,
)


def bound(value, name):
    return made(BoundRecord, value=value, predictor=f"predictor {name}", about=f"about {name}", alpha=0.125)


def point(decay, path=None, chain=None, refusals=()):
    return made(
        CertificatePoint, weight_decay=decay, path=None if path is None else bound(path, f"path at {decay:g}"),
        chain=None if chain is None else bound(chain, f"chain at {decay:g}"), refusals=list(refusals),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([point(0.1, 3.0, 4.0), point(1.0, 3.5, 2.5)], "chain at 1"),
        ([point(0.1, 3.0), point(1.0, 3.5)], "path at 0.1"),
        ([point(0.1), point(1.0, 9.0)], "path at 1"),
    ],
)
def test_the_least_bound_of_all_is_the_one_that_is_explained(points, best):
    section = told(made(CertificateRecord, points=points, sentence="The best of them."))
    least = min(b.value for p in points for b in (p.path, p.chain) if b)
    where = f"λ = {best.split()[-1]}"
    assert section.headline.startswith(f"On this text the risk is at most {least:.3f} nats per token at {where}, ")
    assert section.findings["In full"] == "The best of them."
    assert section.findings["What the predictor is"].startswith(f"Predictor {best}")
    assert section.findings["What the bound is about"] == f"About {best}."
    assert "α = 0.125" in section.findings["What the predictor is"]


def test_without_a_bound_nothing_is_explained_and_refusals_are_told():
    points = [point(0.1, refusals=["the noise was switched off"]), point(1.0, refusals=["no clip", "diverged"])]
    findings = told(made(CertificateRecord, points=points)).findings
    assert findings["Not given"] == "λ = 0.1: the noise was switched off; λ = 1: no clip; λ = 1: diverged."
    assert not any(findings[name] for name in ("What the predictor is", "What the bound is about", "What has to hold"))


def test_terms_of_a_bound_stand_beside_it_rounded_away_from_safety():
    one = made(CertificatePoint, weight_decay=0.5, path=bound(2.00001, "p"), chain=None)
    tables = told(made(CertificateRecord, points=[one])).tables
    assert "2.0001" in tables
    assert "2.0000<" not in tables


def test_a_pass_speaks_of_its_iterates_and_not_of_the_last_weights():
    passed = made(PrequentialRecord, points=[made(PassPoint, certificate=bound(2.0, "pass"))])
    record = made(CertificateRecord, points=[], prequential=passed, delta=0.0625)
    section = told(record)
    assert any("It is not about the last weights" in limit for limit in section.limits)
    assert section.findings["What the predictor is"].startswith("Predictor pass")
    assert "It holds with probability 0.9375 on its own" in section.findings["What the gain is about"]
    noisy = told(made(CertificateRecord, points=[point(0.1, 2.0)]))
    assert not any("It is not about the last weights" in limit for limit in noisy.limits)
    assert any("path certificate" in limit for limit in noisy.limits)
