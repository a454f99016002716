"""`villani certify --prior-drift`: its record, and what it does not go with."""

import shlex

import pytest

from tests.commands.certify.conftest import SMALL
from villani.commands.certify.settings import CertifySettings
from villani.errors import InputError

WORDS = (
    "--prior", "text", "--prior-steps", "0", "--prior-share", "0.3", "--start", "centre", "--weight-decay", "0",
    "--steps", "4", "--batch", "200", "--blocks", "400", "--learning-rate", "1", "--temperature", "1e-3", "--clip",
    "none",
)  # fmt: skip
DRIFT = ("--prior-drift", "--drift-batch", "200", "--drift-every", "2")


def test_the_record_says_what_a_still_reference_would_cost(villani, certified):
    still, moving = certified("--steps", "1", "--batch", "1"), certified(*WORDS, *DRIFT, "--run", "r")
    (point,) = moving["points"]
    assert still["points"][0]["drift"] is None
    drift = point["drift"]
    assert (drift["batch"], drift["every"]) == (200, 2)
    assert point["path_cost"] < 0.9 * drift["still_cost"]
    assert point["path"]["complexity"] == pytest.approx(max(point["log_ratio"], 0))
    assert abs(point["log_ratio"] - point["path_cost"]) < 6 * (2 * point["path_cost"]) ** 0.5  # its standard deviation
    assert moving["prior"].startswith("random weights, drawn without any data; the reference moves with the gradients")
    assert "0 steps" not in moving["prior"]
    assert "prior's text alone" in point["path"]["hypotheses"]
    page = open("r/report.html", encoding="utf-8").read()  # noqa: SIM115
    assert "were h = 0" in page
    assert villani(*shlex.split(moving["provenance"]["command"])[1:], "--run", "r")[0] == 0


def test_with_chains_c4_is_refused_with_the_reason(certified):
    words = ("--prior", "text", "--prior-steps", "2", "--prior-drift", "--drift-batch", "4", "--chains", "2")
    words += ("--steps", "2", "--batch", "4")
    (point,) = certified(*words)["points"]
    assert point["chain"] is None
    assert "no Gaussian" in point["refusals"][0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prior_drift": True}, "--prior-drift is not used without --prior text"),
        ({"prior_drift": True, "prior": "text", "kind": "prequential"}, "--prior-drift is not used with --kind"),
        ({"drift_every": 2, "prior": "text"}, "--drift-every is not used without --prior-drift"),
        ({"drift_every": 0, "prior": "text", "prior_drift": True}, "drift_every=0"),
        ({"drift_batch": 0, "prior": "text", "prior_drift": True}, "drift_batch=0"),
        ({"prior_steps": 0, "prior": "text"}, "prior_steps=0"),
    ],
)
def test_what_does_not_go_together_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        CertifySettings.given(model=SMALL, **values)
