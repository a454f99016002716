"""What a replay and an audit say that they take, in gradients of a group as they are counted by hand."""

import pytest

from villani.commands.audit.needs import audit_needs, replay_needs
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.witness import Claim
from villani.commands.subject import load_subject
from villani.work.work import Work

GROUPS, SEQUENCES, BLOCK, PROBES = 12, 2, 8, 3


@pytest.fixture(scope="module")
def subject():
    settings = AuditSettings(
        model="builtin:tiny?layers=1&width=8&context=8", groups=GROUPS, sequences=SEQUENCES, block=BLOCK,
        probes=PROBES, threads=1,
    )  # fmt: skip
    return settings, load_subject(settings, Work(), 0.1)


def claimed(**changes):
    words = {"settings": {}, "parameter_checksum": "", "orbit": None, "threshold": None, "scales": (), "flat": None}
    return Claim.model_construct(**words | {"slab": (), "text_checksum": None} | changes)


def test_a_replay_takes_every_group_at_every_point(subject):
    """s* and R = 1, 2, 4: a gradient and its sweeps each; a forged list of scales is not believed."""
    settings, loaded = subject
    tokens = GROUPS * SEQUENCES * BLOCK * (1 + 1.3 * PROBES)
    needs = replay_needs(settings, loaded, claimed(orbit="an orbit", scales=(2.0, 4.0)))
    assert needs.stages == {"proving the orbit": None, "walking the orbit": pytest.approx(4 * tokens)}
    forged = replay_needs(settings, loaded, claimed(orbit="an orbit", scales=tuple(range(1000))))
    assert forged.seconds < 4 * needs.seconds
    assert list(replay_needs(settings, loaded, claimed(flat="a shift", slab=("w",))).stages) == [
        "proving the flat direction", "bounding the loss",
    ]  # fmt: skip


def test_an_audit_and_its_replay_keep_the_gradients_of_those_who_measure(subject):
    """Without a search half of the groups measure, of which a replay takes all."""
    settings, loaded = subject
    settings = settings.model_copy(update={"search": 0})
    audited, replayed = audit_needs(settings, loaded), replay_needs(settings, loaded, claimed(orbit="an orbit"))
    size = 4 * loaded.objective.parameters.size
    assert replayed.disk - audited.disk == pytest.approx(GROUPS / 2 * size, rel=0.01)
    assert replayed.memory == audited.memory
