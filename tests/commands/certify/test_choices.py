"""Which certificate for whom: figures of a run beside each other, and which of them is the better."""

import pytest

from tests.commands.certify.test_page import bound
from tests.commands.synthetic import made, told
from villani.commands.certify.choices import advice, certificate_choices
from villani.commands.certify.record import CertificatePoint, CertificateRecord, PassPoint, PrequentialRecord


@pytest.mark.parametrize(("held_out", "words"), [(1.5, "a held-out bound is better"), (2.5, "certificate is lower")])
def test_which_certificate_for_whom_says_when_a_held_out_bound_is_better(held_out, words):
    one = made(
        CertificatePoint, path=bound(2.0, "p"), chain=None, held_out_bound=3.25, held_out_bound_of_as_many=held_out
    )
    section = told(made(CertificateRecord, points=[one], held_out_tokens=4321, prior_bound=2.75)).tables
    assert words in section
    for figure in ("2.0000", "3.2500", f"{held_out:.4f}", "2.7500", "on 4,321 tokens", "not of this run"):
        assert figure in section


def test_of_a_pass_there_is_no_path_certificate_and_of_nothing_no_advice():
    passed = made(PrequentialRecord, points=[made(PassPoint, certificate=bound(2.0, "pass"), held_out_bound=9.0)])
    record = made(CertificateRecord, points=[], prequential=passed)
    figures = [row["nats per token"] for row in certificate_choices(record)]
    assert figures[:3] == ["2.0000", "not of this run", "not of this run"]
    assert "the certificate is lower" in advice(record)
    nothing = made(CertificateRecord, points=[made(CertificatePoint, path=None, chain=None)])
    assert advice(nothing) == ""
