"""Replays of honest witnesses, and of every forgery that we could think of.

The honest ones are made here without an audit: by the same steps, written out.
"""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from villani.commands.audit.claims import bound_checks
from villani.commands.audit.record import ThresholdRecord
from villani.commands.audit.settings import AuditSettings
from villani.commands.audit.witness import Claim, Witness, read_witness, text_checksum
from villani.commands.subject import load_subject
from villani.criteria.audit import replay_stages
from villani.criteria.coverage import bounded_tensors, objective_terms
from villani.criteria.differential import short_batch
from villani.criteria.flat import reproved
from villani.criteria.orbits import Threshold, exponents_of, orbit_of, orbits_of, threshold
from villani.criteria.parts import part_statistics, parts_of
from villani.criteria.patterns import pieces
from villani.criteria.symmetries import generators
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective
from villani.statistics import Estimate
from villani.work.work import Work

BIAS = "transformer.h.0.attn.attention.out_proj.bias"
ORBIT = "transformer.h.0.attn.attention: out_proj.weight ↑ v_proj.weight ↓"


def settings_of(model, **changes):
    small = {"groups": 12, "sequences": 4, "block": 32, "probes": 6, "threads": 1, "decay": "hf", "temperature": 10.0}
    return AuditSettings(model=str(model), tokenizer="builtin", **(small | changes))


@pytest.fixture(scope="module")
def subject(trained):
    return load_subject(settings_of(trained), Work(), 0.1)


@pytest.fixture(scope="module")
def symmetries(subject):
    return generators(trace_loss(subject.objective, short_batch(subject.objective)))


@pytest.fixture(scope="module")
def honest(trained, subject, symmetries, tmp_path_factory):
    """A witness of all three kinds, on the text that the model was trained on, with the mask of a Trainer."""
    settings = settings_of(trained)
    objective, space = subject.objective, subject.objective.parameters
    graph = trace_loss(objective, pieces(objective)[0])
    [orbit] = [o for o in orbits_of(symmetries, space) if o.name == ORBIT]
    parts = parts_of(space, [orbit.exponents])
    along = exponents_of(orbit, parts)
    statistics = part_statistics(
        objective, parts, range(6), seed=7, probes=12, blocks=[[int(i) for i in np.flatnonzero(along == along.min())]]
    )
    names = [p.name for p in space.parameters]
    undecayed = [i for i, p in enumerate(space.parameters) if not p.decayed]
    slab = bounded_tensors(objective, [(graph, objective_terms(objective, pieces(objective)[0]))], undecayed)
    claim = Claim(
        settings=settings.model_dump(mode="json"),
        parameter_checksum=subject.provenance.parameter_checksum,
        orbit=orbit.name,
        threshold=ThresholdRecord.model_validate(threshold(along, statistics, settings.weight_decay)),
        scales=(2.0,),
        flat="a common shift",
        slab=slab.tensors,
        text_checksum=text_checksum(subject.text),
    )
    assert claim.threshold.upper is not None, "the model is trained too little for a witness"
    path = tmp_path_factory.mktemp("witnesses") / "witness.safetensors"
    exponents = {names[i]: e for i, e in orbit.exponents.items()}
    Witness(claim, orbit=exponents, flat={BIAS: torch.ones(32, dtype=torch.float64)}).write(path)
    return path


def forged(honest, path, tensors=None, **changes):
    """The witness with other tensors, or other words in its claim."""
    content = load_file(honest) if tensors is None else tensors
    claim = json.loads(read_witness(honest)[0].claim.model_dump_json())
    for name, value in changes.items():
        claim[name] = claim[name] | value if isinstance(value, dict) else value
    save_file(content, path, {"villani": "witness 1", "claim": json.dumps(claim)})
    return path


# Honest witnesses


def test_an_honest_witness_is_reproduced_where_the_model_lies_elsewhere(villani, honest, trained, tmp_path):
    trained.rename(tmp_path / "moved")
    try:
        code, out, err = villani("audit", "--replay", honest, "--run", tmp_path / "r", "--json")
        assert code == 2
        assert "give it with --model" in err
        assert not (tmp_path / "r").exists()
        words = ("audit", "--replay", honest, "--model", tmp_path / "moved", "--run", tmp_path / "r", "--json")
        code, out, err = villani(*words)
        record = json.loads(out)
        assert (code, record["reproduced"]) == (0, True), record["sentences"]
        assert record["orbit"] == ORBIT
        assert record["flat"]["tensor"] == BIAS
        assert record["slab"]["tensors"]
        assert [step["loss_change"] for step in record["walk"]] == [0, 0]
        assert "the witness names model" in err
        told = replay_stages(groups=12, probes=6, scales=1, orbit=True, flat=True, slab=True)  # before it begins
        assert "expecting roughly" in err
        begun = [line.partition(" ")[2].partition(":")[0].partition(",")[0] for line in err.splitlines()]
        assert list(dict.fromkeys(name for name in begun if name in told)) == list(told)
        code, again, _ = villani(*words)
        assert json.loads(again) == record
    finally:
        (tmp_path / "moved").rename(trained)


def test_the_same_witness_is_the_same_bytes(honest, tmp_path):
    witness, _ = read_witness(honest)
    for number in range(12):  # safetensors orders its metadata by chance
        witness.write(tmp_path / f"{number}.safetensors")
        assert (tmp_path / f"{number}.safetensors").read_bytes() == honest.read_bytes()
    with safe_open(honest, "pt") as opened:
        assert json.loads(opened.metadata()["claim"])["orbit"] == ORBIT
        assert torch.equal(opened.get_tensor(f"flat/{BIAS}"), torch.ones(32, dtype=torch.float64))


def test_no_code_of_a_checkpoint_runs_for_a_witness(villani, honest, tmp_path):
    """A folder whose configuration brings code; whatever the witness says, and even where the reader names it."""
    folder = tmp_path / "evil"
    folder.mkdir()
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    maps = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": maps}))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    wanted = {"model": str(folder), "trust_remote_code": True}
    path = forged(honest, tmp_path / "w.safetensors", settings=wanted)
    for more in ([], ["--model", folder]):
        code, out, err = villani("audit", "--replay", path, *more, "--run", tmp_path / "r")
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert not ran.exists()
        assert not (tmp_path / "r").exists()


def test_options_that_a_replay_does_not_take_are_refused(villani, honest):
    code, _, err = villani("audit", "--replay", honest, "--groups", "3", "--decay", "hf")
    assert code == 2
    assert "--decay is not used with --replay, where the witness says" in err
    code, _, err = villani("audit", "a", "--model", "b", "--replay", honest)
    assert code == 2
    assert "both models" in err


# Forgeries: claims that are no such thing


@pytest.mark.parametrize(
    ("exponents", "words"),
    [
        ({"ln_1.weight": 1, "attn.attention.v_proj.weight": -1}, "no rescaling symmetry"),  # not its bias
        ({"attn.attention.out_proj.weight": 1}, "no rescaling symmetry"),
        ({"attn.attention.out_proj.weight": 1, "attn.attention.v_proj.weight": -1, "mlp.c_fc.bias": 1}, "no rescaling"),
        ({"attn.attention.out_proj.weight": 0, "attn.attention.v_proj.weight": 0}, "all exponents are zero"),
        ({"attn.attention.out_proj.weight": 0.5, "attn.attention.v_proj.weight": -0.5}, "no whole numbers"),
        ({"attn.attention.out_proj.weight": 3, "attn.attention.v_proj.weight": -3}, "does not grow as R"),
    ],
)
def test_what_is_no_symmetry_is_no_orbit(subject, symmetries, exponents, words):
    space, basis = subject.objective.parameters, symmetries
    index = {p.name.removeprefix("transformer.h.0."): i for i, p in enumerate(space.parameters)}
    stated = {index[name]: torch.tensor(float(e)) for name, e in exponents.items()}
    assert words in orbit_of(stated, basis, space)


def test_symmetries_of_single_entries_are_told_from_others(subject, symmetries):
    space, basis = subject.objective.parameters, symmetries
    for orbit in orbits_of(basis, space):
        again = orbit_of(
            {i: e.expand(space.parameters[i].tensor.shape) for i, e in orbit.exponents.items()}, basis, space
        )
        assert again.name == orbit.name
    index = {p.name.removeprefix("transformer.h.0."): i for i, p in enumerate(space.parameters)}
    out, value = index["attn.attention.out_proj.weight"], index["attn.attention.v_proj.weight"]
    one = torch.zeros(32, 32)
    one[0, 0] = 1
    assert "no rescaling" in orbit_of({out: one, value: -torch.ones(())}, basis, space)


def test_claimed_numbers_are_held_against_what_is_found(honest):
    """The claim itself, as if found again, passes; every number of it that is changed does not."""
    claimed = read_witness(honest)[0].claim.threshold

    def estimate(record):
        return Estimate(record.value, record.sem, record.n, record.status)

    found = Threshold(
        claimed.value, claimed.upper, claimed.level, claimed.norm_squared,
        estimate(claimed.gradient_norm_squared), estimate(claimed.laplacian),
    )  # fmt: skip

    def passes(**changes):
        return all(check.holds for check in bound_checks(claimed.model_copy(update=changes), found))

    assert passes()
    trace, gradient = claimed.laplacian, claimed.gradient_norm_squared
    for changes in (
        {"upper": 1e-300},
        {"upper": None},
        {"upper": claimed.upper / 3},
        {"upper": claimed.value / 1.1},
        {"value": 1e-300, "upper": 1e-300},
        {"value": claimed.value / 2},
        {"value": None},
        {"level": 1.0},
        {"norm_squared": claimed.norm_squared * 1.1 + 1e-9},
        {"laplacian": trace.model_copy(update={"value": 20 * trace.value})},
        {"laplacian": trace.model_copy(update={"value": -trace.value})},
        {"gradient_norm_squared": gradient.model_copy(update={"value": gradient.value + 1})},
    ):
        assert not passes(**changes), changes


def judged(villani, path, model, run):
    """The record of a replay that does not reproduce what it is given."""
    code, out, err = villani("audit", "--replay", path, "--model", model, "--run", run, "--json")
    assert code == 1, err
    record = json.loads(out)
    assert record["reproduced"] is False
    kept = json.loads((run / "records.json").read_text())["records"][0]
    assert kept == record
    return kept


def test_a_forged_orbit_is_not_reproduced(villani, honest, trained, tmp_path):
    """The right orbit, with a bound out of thin air, no walk, and of another text; all of it is said."""
    words = {"orbit": "<script>", "threshold": {"upper": 1e-300}, "scales": [1 + 1e-9], "text_checksum": "0" * 64}
    tensors = {key: t for key, t in load_file(honest).items() if key.startswith("orbit")}
    path = forged(honest, tmp_path / "w.safetensors", tensors, **words, flat=None, slab=[], settings={"probes": 1})
    record = judged(villani, path, trained, tmp_path / "r")
    told = " ".join(record["sentences"])
    for part in ("powers of two", "not the one that was audited", "bound lies below the estimate"):
        assert part in told
    assert record["orbit"] == ORBIT
    assert [step["scale"] for step in record["walk"]] == [1, 2, 4, 8, 16]
    assert "script" not in told


def test_forged_parts_are_not_reproduced(villani, honest, trained, tmp_path):
    """Exponents and a direction that are all zero, and a slab of what decays."""
    nothing = {key: 0 * tensor for key, tensor in load_file(honest).items()}
    path = forged(honest, tmp_path / "w.safetensors", nothing, slab=["transformer.wte.weight"])
    record = judged(villani, path, trained, tmp_path / "r")
    told = " ".join(record["sentences"])
    for part in ("all exponents are zero", "has 0 as its largest entry", "decay, or are not θ's"):
        assert part in told
    assert record["found"] is record["flat"] is record["slab"] is None
    assert record["walk"] == []


@pytest.mark.parametrize(
    ("tensor", "direction", "words"),
    [
        (BIAS, 1e-12 * torch.ones(32), "has 1e-12 as its largest entry"),
        (BIAS, torch.zeros(32), "has 0 as its largest entry"),
        (BIAS, -2 * torch.ones(32), "has 2 as its largest entry"),
        (BIAS, torch.eye(32)[3], "is not shown"),
        (BIAS, 1 - 1e-4 * torch.eye(32)[3], "is not shown"),
        ("transformer.h.0.mlp.c_fc.bias", torch.ones(128), "is not shown"),
        ("transformer.h.0.attn.attention.out_proj.weight", torch.ones(32, 32), "decays"),
    ],
)
def test_what_is_no_flat_direction_is_refused(subject, tensor, direction, words):
    assert words in proved_again(subject.objective, tensor, direction)


def proved_again(objective, tensor, direction):
    parameters = objective.parameters.parameters
    [index] = [i for i, p in enumerate(parameters) if p.name == tensor]
    undecayed = [i for i, p in enumerate(parameters) if not p.decayed]
    graphs = [(trace_loss(objective, b), objective_terms(objective, b)) for b in pieces(objective)]
    return reproved(objective, graphs, undecayed, index, direction.double())


def test_a_flat_direction_is_proved_again(subject):
    found = proved_again(subject.objective, BIAS, torch.ones(32))
    assert found.holds
    assert any("layer_norm" in place for place in found.deleted_by)


def test_rows_that_this_text_does_not_look_up_prove_nothing(subject):
    """One row with a shift that a norm deletes, hiding another row with one that nothing deletes."""
    objective = Objective(subject.loaded.model, subject.objective.groups, 0.1, "olmo")
    table = "transformer.wpe.weight"
    assert objective.parameters.parameters[1].name == table
    honest = torch.zeros(32, 32)
    honest[2] = 1
    assert proved_again(objective, table, honest).holds
    hiding = honest.clone()
    hiding[5, 7] = 0.5
    assert "rows that not every text looks up" in proved_again(objective, table, hiding)
    assert "is not shown" in proved_again(objective, table, torch.eye(32)[7] * torch.eye(32)[5][:, None])


# Files that are no witnesses


def header(path, change):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = change(content[8 : 8 + length].decode()).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def claim_of(honest, change):
    """The same tensors, and a claim that is changed as text."""

    def changed(text):
        parsed = json.loads(text)
        parsed["__metadata__"]["claim"] = change(parsed["__metadata__"]["claim"])
        return json.dumps(parsed)

    return header(honest, changed)


BROKEN = {
    "empty": lambda w: b"",
    "cut": lambda w: w.read_bytes()[:-1],
    "longer": lambda w: w.read_bytes() + b"x",
    "huge header": lambda w: (1 << 62).to_bytes(8, "little") + w.read_bytes()[8:],
    "no metadata": lambda w: header(w, lambda t: t.replace("__metadata__", "__metadatb__")),
    "metadata of numbers": lambda w: header(w, lambda t: json.dumps(json.loads(t) | {"__metadata__": {"claim": 7}})),
    "another version": lambda w: header(w, lambda t: t.replace("witness 1", "witness 2")),
    "a tensor twice": lambda w: header(w, lambda t: t.replace('{"', '{"orbit/x": {}, "orbit/x": {}, "', 1)),
    "another dtype": lambda w: header(w, lambda t: t.replace('"F64"', '"I64"')),
    "no dtype": lambda w: header(w, lambda t: t.replace('"F64"', '"X"')),
    "offsets": lambda w: header(w, lambda t: t.replace('"data_offsets":[0,', '"data_offsets":[1,')),
    "deep": lambda w: claim_of(w, lambda c: '{"settings":' + "[" * 50_000),
    "deep but whole": lambda w: claim_of(w, lambda c: c.replace('"builtin"', "[" * 900 + "]" * 900, 1)),
    "twice": lambda w: claim_of(w, lambda c: c.replace('"settings"', '"orbit": "x", "settings"', 1)),
    "NaN": lambda w: claim_of(w, lambda c: c.replace('"scales":[', '"scales":[NaN,')),
    "many scales": lambda w: claim_of(w, lambda c: c.replace('"scales":[', '"scales":[' + "2," * 1000)),
    "no settings": lambda w: claim_of(w, lambda c: c.replace('"settings"', '"sittings"')),
    "settings of a list": lambda w: claim_of(w, lambda c: json.dumps(json.loads(c) | {"settings": []})),
    "no threshold": lambda w: claim_of(w, lambda c: json.dumps(json.loads(c) | {"threshold": None})),
    "no orbit": lambda w: claim_of(w, lambda c: json.dumps(json.loads(c) | {"orbit": None})),
    "no flat": lambda w: claim_of(w, lambda c: json.dumps(json.loads(c) | {"flat": None})),
    "words for numbers": lambda w: claim_of(w, lambda c: c.replace('"level":', '"level":"all", "x":')),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_witness_is_refused_in_one_line(villani, honest, trained, tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(BROKEN[name](honest))
    code, out, err = villani("audit", "--replay", path, "--model", trained, "--run", tmp_path / "r")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 or "the witness names" in err
    assert "Traceback" not in err
    assert str(path) in err
    assert not (tmp_path / "r").exists()


def test_what_a_terminal_would_obey_is_shown(villani, honest, tmp_path):
    path = forged(honest, tmp_path / "w.safetensors", settings={"text": "\x1b[2J\nvillani: all is well"})
    code, _, err = villani("audit", "--replay", path)
    assert code == 2
    assert "\x1b" not in err


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device")
def test_a_device_is_no_witness(villani):
    code, _, err = villani("audit", "--replay", "/dev/zero")
    assert code == 2
    assert "no such file" in err
