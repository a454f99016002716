"""Settings of an audit and of a replay: one rule for what can be audited, and commands that read back."""

import inspect
import shlex
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import villani
from villani import cli
from villani.commands.audit.settings import AuditSettings
from villani.criteria import audit as criteria
from villani.errors import InputError

TEXTS = st.sampled_from(["builtin", "ptb", "a b.txt", "it's", "x,y", "-dash"])
SIZES = st.floats(1e-6, 1e6)
READERS = {
    "text": TEXTS,
    "tokenizer": TEXTS,
    "seed": st.integers(0, 2**62),
    "threads": st.integers(1, 4),
    "micro_tokens": st.integers(1, 4096),
    "trust_remote_code": st.booleans(),
    "allow_unused": st.sampled_from(["^lm_head", "a|b c"]),
}
AUDITORS = READERS | {
    "decay": st.sampled_from(["all", "hf", "match:a|b c"]),
    "weight_decay": SIZES,
    "temperature": SIZES,
    "groups": st.integers(12, 40),
    "sequences": st.integers(1, 9),
    "block": st.integers(2, 64),
    "probes": st.integers(1, 9),
    "confirmed": st.integers(1, 9),
    "search": st.integers(0, 9),
    "rays": st.lists(st.sampled_from(["random", "gradient", "parameters", "layer 0"]), max_size=3),
    "ray_groups": st.integers(3, 9),
    "finite": st.booleans(),
    "dtype": st.sampled_from(["float32", "float64"]),
    "special_tokens": st.sampled_from(["auto", "none", "bos"]),
}
ASKED = st.one_of(
    st.fixed_dictionaries({"model": TEXTS}, optional=AUDITORS),
    st.fixed_dictionaries({"model_by_flag": TEXTS}, optional=AUDITORS),
    st.fixed_dictionaries({"replay": TEXTS}, optional=READERS | {"model": TEXTS}),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(ASKED)
def test_the_command_reads_back(values):
    asked = AuditSettings.given(**values)
    assert cli.parse(shlex.split(asked.command())[1:])[1] == asked


def test_what_nobody_gives():
    """Of an audit, text and seed have defaults; a replay has those of its witness."""
    asked = AuditSettings(model="m")
    assert (asked.text, asked.seed) == ("builtin", 0)
    assert asked.command() == "villani audit m --text builtin --weight-decay 0.1 --temperature 0.001"
    asked = AuditSettings(replay="w")
    assert (asked.model, asked.text, asked.seed) == (None, None, None)
    assert asked.command() == "villani audit --replay w"
    assert AuditSettings(replay="w", seed=0).command() == "villani audit --seed 0 --replay w"


def test_two_models_are_one_too_many():
    assert AuditSettings.given(model_by_flag="m") == AuditSettings.given(model="m")
    with pytest.raises(InputError, match="'a' and --model 'b' are both models"):
        AuditSettings.given(model="a", model_by_flag="b")
    with pytest.raises(InputError, match="give a model, or --replay"):
        AuditSettings.given()


def test_neither_the_witness_nor_the_flag_is_a_setting_of_an_audit():
    assert not {"replay", "model_by_flag"} & AuditSettings(model="m").model_dump().keys()


def test_the_defaults_are_those_of_the_library():
    library = {name: p.default for name, p in inspect.signature(villani.audit).parameters.items()}
    asked = AuditSettings(model="m")
    for name in ("temperature", "seed", "probes", "confirmed", "search", "ray_groups"):
        assert getattr(asked, name) == library[name], name
    assert asked.rays == list(library["rays"])


class Begun(Exception):
    """An audit was not refused."""


CASES = [
    {"groups": groups, "search": search, "finite": finite, "probes": 2}
    for groups in (2, 7, 8, 11, 12) for search in (0, 1) for finite in (False, True)
] + [
    {"groups": 12, **wrong}
    for wrong in (
        {"probes": 0}, {"confirmed": 0}, {"search": -1}, {"seed": -1}, {"ray_groups": 2}, {"temperature": 0.0},
        {"rays": ["sideways"]},
    )
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_rule_for_python_settings_and_command_line(monkeypatch, case):
    """What a half or a third of the groups are needed for does not depend on who asks."""

    def begin(*_args, **_named):
        raise Begun

    monkeypatch.setattr(criteria, "directions", begin)
    objective = SimpleNamespace(
        groups=range(case["groups"]), finite=case.get("finite", False), parameters=SimpleNamespace(size=10**6)
    )
    numbers = {name: value for name, value in case.items() if name not in ("groups", "finite")}

    def refusal(work):
        try:
            work()
        except InputError as error:
            return str(error)
        except Begun:
            return None
        return None

    asked = AuditSettings(model="m", **case)
    words = shlex.split(asked.command())[1:]
    python = refusal(lambda: criteria.audit.__wrapped__(objective, **{"temperature": 1e-3} | numbers))
    least = 12 if case.get("search", 3) else 8
    assert python == refusal(asked.check)
    assert python == refusal(lambda: AuditSettings.given(model="m", **case))
    assert python == refusal(lambda: cli.parse(words))
    if case in CASES[:20]:
        assert (python is None) == (case["finite"] or case["groups"] >= least)
    else:
        assert python is not None


def test_probes_are_all_the_noise_of_a_finite_data_set():
    """A small θ has exact traces; how large it is, is known once it is loaded."""
    asked = AuditSettings(model="m", finite=True)
    asked.check()
    asked.check_design(512)
    with pytest.raises(InputError, match="probes=1: expected at least 2"):
        asked.check_design(513)
