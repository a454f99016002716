"""Settings of `villani certify`: defaults by kind, the command that reads back to them, and what is refused."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.commands.certify.conftest import QUICK, SMALL
from villani import cli
from villani.commands.certify.settings import CertifySettings
from villani.errors import InputError

PATH = {"start": st.sampled_from(["prior", "centre"]), "scale": st.sampled_from(["unit", "relative"])} | {
    "temperature": st.floats(1e-9, 1), "steps": st.integers(1, 300), "chains": st.integers(1, 99),
}  # fmt: skip
PREQUENTIAL = {"towards": st.sampled_from(["centre", "zero"]), "warm_up": st.integers(0, 99)}


def numbers(low, high, size=3):
    return st.lists(st.floats(low, high), min_size=1, max_size=size, unique=True)


def options(kind):
    """Valid options of a kind, in any number."""
    prior = st.sampled_from(["init", "given"])
    own = PATH if kind == "path" else PREQUENTIAL
    every = own | {
        "text": st.sampled_from(["builtin", "a b.txt", "-x.txt"]), "held_out": st.sampled_from([None, "o'k.txt"]),
        "tokenizer": st.sampled_from([None, "gpt2"]), "block": st.integers(2, 512), "prior": prior,
        "blocks": st.none() | st.integers(1, 999), "train": st.sampled_from(["all", r"ln_|bias", "-w"]),
        "direction": st.sampled_from(["sgd", "momentum", "adam"]), "weight_decay": numbers(1e-6, 1.0),
        "learning_rate": numbers(1e-6, 0.9, 1 if kind == "path" else 3), "batch": st.integers(1, 99),
        "clip": st.none() | st.floats(1e-3, 1e3), "delta": st.floats(1e-6, 0.5), "candidates": st.integers(1, 10**13),
        "alpha": numbers(1e-6, 0.5), "seed": st.integers(0, 2**62), "dtype": st.sampled_from(["float32", "float64"]),
        "special_tokens": st.sampled_from(["auto", "none", "bos"]), "threads": st.none() | st.integers(1, 9),
        "micro_tokens": st.integers(1, 9999), "trust_remote_code": st.booleans(),
        "allow_unused": st.sampled_from([None, "a|b c"]), "device": st.sampled_from(["cpu", "cuda:1"]),
    }  # fmt: skip
    return st.fixed_dictionaries({"model": st.just("config:x?layers=1&width=8"), "kind": st.just(kind)}, optional=every)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["path", "prequential"]).flatmap(options))
def test_the_command_reads_back_to_the_settings(values):
    made = CertifySettings.given(**values)
    _, read, _ = cli.parse(shlex.split(made.command())[1:])
    assert read == made


@pytest.mark.parametrize("values", [{}, {"drift_every": 3}, {"drift_batch": 5, "prior_steps": 0}])
def test_the_command_of_a_moving_reference_reads_back_too(values):
    made = CertifySettings.given(model="config:x", prior="text", prior_drift=True, **values)
    assert cli.parse(shlex.split(made.command())[1:])[1] == made


@pytest.mark.parametrize(
    ("values", "weight_decay", "learning_rate"),
    [
        ({}, 1.0, 0.1),
        ({"direction": "adam"}, 1.0, 0.1),
        ({"kind": "prequential"}, 0.01, 0.1),
        ({"kind": "prequential", "direction": "adam"}, 0.01, 1e-3),
    ],
)
def test_defaults_depend_on_the_kind(values, weight_decay, learning_rate):
    made = CertifySettings(model=SMALL, **values)
    assert (made.weight_decay, made.learning_rate) == ([weight_decay], [learning_rate])
    given = CertifySettings(model=SMALL, weight_decay=[0.3], learning_rate=[0.2], **values)
    assert (given.weight_decay, given.learning_rate) == ([0.3], [0.2])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 4, "kind": "prequential"}, "--steps is not used with --kind prequential"),
        ({"scale": "unit", "kind": "prequential"}, "--scale is not used with --kind prequential"),
        ({"warm_up": 0}, "--warm-up is not used without --kind prequential"),
        ({"prior_steps": 9}, "--prior-steps is not used without --prior text"),
        ({"learning_rate": [0.1, 0.2]}, "expected one number"),
        ({"learning_rate": []}, "expected different numbers"),
        ({"weight_decay": []}, "expected different numbers"),
    ],
)
def test_what_does_not_go_together_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        CertifySettings.given(model=SMALL, **values)


BAD = [  # of either kind
    (["--weight-decay", "-1"], "weight_decay=-1"),
    (["--weight-decay", "1,1"], "different numbers"),
    (["--learning-rate", "0"], "learning_rate=0"),
    (["--learning-rate", ""], "expected numbers"),
    (["--clip", "x"], "expected a number"),
    (["--clip", "-1"], "clip=-1"),
    (["--batch", "0"], "batch=0"),
    (["--delta", "0"], "delta=0"),
    (["--delta", "1"], "delta=1"),
    (["--alpha", "0"], "alpha=0"),
    (["--alpha", "2"], "alpha=2"),
    (["--seed", "-1"], "seed=-1"),
    (["--train", "nothing"], "matches no parameter"),
    (["--prior", "text", "--prior-share", "0"], "prior_share=0"),
    (["--block", "99"], "accepts at most 16"),
    (["--held-out", "absent.txt"], "no such file"),
]
BAD_OF = {
    "path": [
        (["--weight-decay", "0"], "no prior to start in"),
        (["--weight-decay", "50"], "η < 2/λ"),
        (["--temperature", "0"], "needs noise"),
        (["--learning-rate", "0.1,0.2"], "expected one number"),
        (["--steps", "0"], "steps=0"),
        (["--chains", "0"], "chains=0"),
        (["--towards", "zero"], "--towards is not used without --kind prequential"),
    ],
    "prequential": [
        (["--weight-decay", "50"], "more than all of θ"),
        (["--learning-rate", "0.1,0.1"], "different numbers"),
        (["--warm-up", "-1"], "warm_up=-1"),
        (["--temperature", "1e-3"], "--temperature is not used with --kind prequential"),
        (["--learning-rate", "1e30", "--clip", "none", "--weight-decay", "0"], "diverged at step"),
    ],
}


@pytest.mark.parametrize(("kind", "words", "fragment"), [(k, *b) for k in BAD_OF for b in (*BAD, *BAD_OF[k])])
def test_bad_input_is_one_line(villani, text, kind, words, fragment):
    code, out, err = villani("certify", SMALL, "--kind", kind, *QUICK, *words)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("villani: ")]
    assert fragment in line


@pytest.mark.parametrize("kind", ["path", "prequential"])
def test_a_checkpoint_needs_the_users_word(villani, certified, checkpoint, kind):
    words = ["certify", checkpoint, *QUICK, "--kind", kind, "--tokenizer", "builtin", "--json"]
    words += ["--steps", "4"] if kind == "path" else []
    code, _, err = villani(*words)
    assert code == 2
    assert "may have seen the text" in err
    code, out, _ = villani(*words, "--prior", "given")
    assert code == 0
    assert "\"on the user's word" in out or "on the user's word" in out
