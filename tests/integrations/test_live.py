import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import RwkvConfig, RwkvForCausalLM

from tests.conftest import make_model, make_pool
from tests.integrations.test_budget import Clock
from tests.integrations.test_untouched import Quirks, snapshot
from villani.dynamics.schedules import ConstantMemory, GuardFollowing
from villani.errors import InputError
from villani.integrations.figures import PREFIX
from villani.integrations.live import Live, decay_of
from villani.integrations.untouched import untouched
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.streams import Purpose, word


def quirky_loss(model, group):
    loss = model(group).mean()
    (loss * 1.0).backward(retain_graph=True)  # a careless user's
    return loss


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_measurement_leaves_no_trace(around):
    model = Quirks().train()
    model.drop.eval()  # modes of submodules differ
    model.inner.weight.grad = torch.ones(1, 3)  # one slope is there, the other None
    groups = [torch.randn(4, 3) for _ in range(3)]
    live = Live(model, groups, temperature=1.0, loss_fn=quirky_loss)
    before = snapshot(model)
    with around():
        figures = live.measure(1)
    assert figures[PREFIX + "loss"] > 0
    assert snapshot(model) == before


def test_the_forward_that_mixed_precision_wraps_is_unwrapped_and_put_back():
    model = make_model("gpt2")
    model._original_forward = model.forward
    model.forward = lambda *a, **k: pytest.fail("the wrapped forward was called")
    wrapped = model.forward
    live = Live(model, make_pool(4), temperature=1.0)
    assert live.measure(0)[PREFIX + "loss"] > 0
    assert model.forward is wrapped


def test_figures_are_those_of_measure_with_probes_of_the_step():
    model, pool = make_model("gpt2"), make_pool(6)
    optimizer = torch.optim.SGD(
        [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.3},
         {"params": [p for p in model.parameters() if p.dim() == 1]}], lr=0.1,
    )  # fmt: skip
    live = Live(model, pool, temperature=0.2, seed=7)
    live.start(optimizer)
    found = live.measure(5)
    oracle = measure(Objective(model, pool, 0.3, "nanogpt"), 1, word(7, Purpose.LIVE, 5), trace=None, shares=0)
    psi = oracle.psi(temperature=0.2)
    assert found[PREFIX + "psi"] == psi.value
    assert found[PREFIX + "psi_sem"] == psi.sem
    for name, part in psi.parts.items():
        assert found[f"{PREFIX}psi_{name}"] == part.value
        assert (f"{PREFIX}psi_{name}_sem" in found) == (part.sem > 0)
    for name in ("loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace"):
        assert found[PREFIX + name] == getattr(oracle, name).value
        assert found[PREFIX + name + "_sem"] == getattr(oracle, name).sem
    assert (found[PREFIX + "lambda"], found[PREFIX + "lambda_is_of_F"], found[PREFIX + "s"]) == (0.3, 1.0, 0.2)
    assert live.measure(6)[PREFIX + "hessian_trace"] != found[PREFIX + "hessian_trace"]


@pytest.mark.parametrize(
    ("make", "objective", "words"),
    [
        (lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1), 0.1, "L2 term"),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), None, "AdamW is no gradient descent on F"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), 0.1, "fixed points of F"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1, decoupled_weight_decay=True), None, "no gradient descent"),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.0), 0.0, "No decay"),
        (lambda p: torch.optim.SGD([{"params": p[:1], "weight_decay": 0.2}, {"params": p[1:]}], lr=1, weight_decay=0.1),
         None, "2 different rates"),
    ],
)  # fmt: skip
def test_which_lambda_of_f_an_optimiser_has(make, objective, words):
    model = make_model("gpt2")
    decay = decay_of(make(list(model.parameters())), model)
    assert decay.objective == objective
    assert words in decay.why


def test_adamw_is_flagged_once_and_a_diverged_run_goes_on(caplog):
    clock, model = Clock(), make_model("gpt2")
    live = Live(model, make_pool(4), temperature=1.0, clock=clock)
    live.start(torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    assert live.measure(0)[PREFIX + "lambda_is_of_F"] == live.measure(1)[PREFIX + "lambda_is_of_F"] == 0.0
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1
    assert "Ψ is that of F at that λ, which this run does not descend" in caplog.text
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    assert live.measure(2) == {PREFIX + "failed": 1.0}
    assert "step 2: not measured: parameter transformer.wte.weight has 1 non-finite" in caplog.text
    for _ in range(100):  # a trial is affordable then, and fails as well
        clock.now += 1.0
        live.budget.step()
    assert live.step(3) == {}
    assert "step 3: not measured" in caplog.text


def test_live_waits_for_its_budget_then_measures_and_accounts(monkeypatch):
    clock, model = Clock(), make_model("gpt2")
    live = Live(model, make_pool(4), temperature=1.0, weight_decay=0.1, clock=clock, max_overhead=0.03)
    tried, measured = [], []

    def trial(self, group):
        tried.append(clock.now)
        clock.now += 0.5

    def whole(step):
        measured.append(clock.now)
        clock.now += 20.0
        return {PREFIX + "loss": 1.0}

    monkeypatch.setattr(Objective, "loss", trial)
    monkeypatch.setattr(live, "measure", whole)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    schedule = live.schedule = ConstantMemory(cap=1.0)
    live.start(optimizer)
    logged = []
    for step in range(1, 4001):
        clock.now += 1.0
        logged.append(live.step(step))
        assert live.budget.overhead <= 0.03
    assert len(tried) == 6  # at 67 s, and where the run is four times as long, until something was measured
    assert tried[0] >= 66  # two forward passes as dear as a step are affordable then
    assert measured[0] >= (3.0 + 0.5 * 20 * 4) / 0.03  # 20 forward passes for each of 4 groups, until one is known
    assert len(measured) == 5  # 25 s are expected from then on: at (3 + 20·n + 25)/0.03 = 1600, 2267, 2933, 3600 s
    assert sum(bool(row) for row in logged) == 5
    assert schedule.steps == 4000
    told = live.finish()
    assert told[PREFIX + "measuring_seconds"] == 103.0
    assert told[PREFIX + "overhead"] == pytest.approx(103.0 / 4000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.0}, "temperature=0"),
        ({"weight_decay": -1.0}, "weight_decay=-1"),
        ({"max_overhead": 0.0}, "max_overhead=0"),
        ({"probes": 0}, "probes=0"),
        ({"decay": "some"}, "'some' is unknown"),
        ({"groups": make_pool(2)}, "groups=2"),
        ({"groups": torch.full((3, 1, 4), 99)}, "outside the model's vocabulary"),
        ({"model": make_model("gpt2").bfloat16()}, "bfloat16"),
    ],
)
def test_bad_settings_are_told_before_the_run(changes, words):
    settings = {"model": make_model("gpt2"), "groups": make_pool(4), "temperature": 1.0} | changes
    with pytest.raises(InputError, match=words):
        Live(settings.pop("model"), settings.pop("groups"), **settings)


@pytest.mark.parametrize("way", ["wrapped", "in place", "a layer"])
def test_a_compiled_model_is_measured_as_the_module_that_it_wraps(way):
    """`aot_eager` graphs have no second derivative; eager is the same function of the same tensors."""
    groups = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    settings = {"temperature": 1.0, "loss_fn": lambda model, x: model(x).square().mean()}
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    plain = Live(copy.deepcopy(model), groups, **settings).measure(0)
    compiled = model
    if way == "wrapped":
        compiled = torch.compile(model, backend="aot_eager")
    elif way == "in place":
        model.compile(backend="aot_eager")
    else:
        model[0] = torch.compile(model[0], backend="aot_eager")
    compiled(groups[0]).sum().backward()  # so that there is a graph
    found = Live(compiled, groups, **settings).measure(0)
    assert found == pytest.approx(plain, rel=1e-5)
    compiled(groups[0]).sum().backward()


class Moody(nn.Module):
    """Fails when it is told to, in the middle of everything."""

    def __init__(self):
        super().__init__()
        self.inner, self.error, self.calls = nn.Linear(3, 1), None, 0
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.mean += x.detach().mean(0)
        if self.error is not None:
            with torch.no_grad():
                self.inner.weight += 1.0  # as RWKV does in evaluation
            random.random()
            torch.rand(1)
            self.requires_grad_(False)
            raise self.error
        return self.inner(x).square()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no double backward"), IndexError("Target -1 is out of bounds."), ZeroDivisionError(), MemoryError(),
     NotImplementedError("no rule"), AssertionError("two\nlines"), torch.OutOfMemoryError("full"), KeyError("loss")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_whatever_fails_the_run_goes_on_as_it_was_and_hears_of_it_once(error, caplog):
    clock, model = Clock(), Moody()
    groups = [torch.randn(4, 3) for _ in range(3)]
    live = Live(model, groups, temperature=1.0, loss_fn=lambda m, g: m(g).mean(), clock=clock)
    stepper = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    live.start(stepper)
    model.error, model.inner.weight.grad = error, torch.ones(1, 3)
    live.budget.expect(1e-3)
    before = snapshot(model), model.calls
    told = []
    for step in range(1, 200):
        clock.now += 1.0
        told.append(live.step(step))
        assert (snapshot(model), model.calls) == before
    failed = [row for row in told if row]
    assert all(row[PREFIX + "failed"] == 1.0 for row in failed)
    assert 2 <= len(failed) <= 8  # tried again, ever more rarely
    reasons = [record.message for record in caplog.records if "not measured" in record.message]
    assert len({reason.split(": ", 1)[1] for reason in reasons}) == 1
    assert len(reasons) <= 2  # of the trial, of the measurement
    assert type(error).__name__ in reasons[0]
    assert "\n" not in reasons[0]
    live.finish()
    assert "no measurement was made in 199 steps" in caplog.text
    model.error = None
    assert live.measure(200)[PREFIX + "loss"] > 0


def test_an_interrupt_is_no_failure():
    model = Moody()
    live = Live(model, [torch.randn(4, 3) for _ in range(3)], temperature=1.0, loss_fn=lambda m, g: m(g).mean())
    model.error, before = KeyboardInterrupt(), None
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        live.measure(1)
    assert snapshot(model) == before


def bad_labels(value):
    ids = torch.zeros(2, 4, dtype=torch.int64)
    return [{"input_ids": ids, "labels": torch.full_like(ids, value)}] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": bad_labels(-1)}, "."),
        ({"groups": bad_labels(11)}, "."),
        ({"groups": [*make_pool(3), *bad_labels(-1)]}, "."),
        ({"loss_fn": lambda m, g: 1.0}, "."),
        ({"loss_fn": lambda m, g: m.no_such(g)}, "AttributeError"),
        ({"loss_fn": lambda m, g: next(m.parameters()).sum(), "trace": "taylor"}, "."),
    ],
)
def test_what_can_never_work_is_refused_in_a_line_and_leaves_no_trace(changes, words):
    settings = {"model": make_model("gpt2"), "groups": make_pool(4), "temperature": 1.0} | changes
    model = settings.pop("model")
    before = snapshot(model)
    with pytest.raises(InputError, match=words) as error:
        Live(model, settings.pop("groups"), **settings)
    assert len(str(error.value).splitlines()) == 1
    assert snapshot(model) == before


def test_rwkv_which_rescales_its_weights_in_evaluation_is_put_back():
    torch.manual_seed(0)
    model = RwkvForCausalLM(
        RwkvConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, attention_hidden_size=8, intermediate_size=8,
                   context_length=8, rescale_every=1)
    ).train()  # fmt: skip
    ids = torch.arange(6)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    weights = [p.detach().clone() for p in model.parameters()]
    with untouched(model):
        model.eval()
        model(input_ids=ids)
        assert not all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)  # its note of having rescaled is put back, too


def test_a_short_run_says_that_it_was_never_measured(caplog):
    clock, model = Clock(), make_model("gpt2")
    live = Live(model, make_pool(4), temperature=1.0, clock=clock)
    live.start(torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(1, 4):
        clock.now += 1.0
        assert live.step(step) == {}
    assert live.finish()[PREFIX + "measurements"] == 0.0
    assert "no measurement was made in 3 steps of 3 s: max_overhead=0.03 allowed 0.09 s of them, too few" in caplog.text
    live.start(torch.optim.SGD(model.parameters(), lr=0.1))
    live.budget.expect(20.0)
    clock.now += 100.0
    live.step(4)
    live.finish()
    assert "max_overhead=0.03 allowed 3 s of them, and one is expected to take 20 s" in caplog.text


def test_a_schedule_that_fails_leaves_the_decay_as_it_is(caplog):
    def guard(step):
        if step == 2:
            raise RuntimeError("lost")
        return {"orbit": 0.04 * step}

    model = make_model("gpt2")
    schedule = GuardFollowing(guard, every=1, cap=1.0, smoothing=1.0)
    live = Live(model, make_pool(4), temperature=1.0, schedule=schedule)
    stepper = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    live.start(stepper)
    decays = []
    for step in range(1, 4):
        figures = live.step(step)
        assert (PREFIX + "failed" in figures) == (step == 2)
        decays.append(stepper.param_groups[0]["weight_decay"])
    assert decays == pytest.approx([0.2, 0.2, 0.12**0.5])
    assert schedule.steps == 3
    assert "step 2: decay schedule: RuntimeError: lost; weight decay stays as it is" in caplog.text


def test_a_step_before_the_start_is_told():
    live = Live(make_model("gpt2"), make_pool(4), temperature=1.0)
    with pytest.raises(InputError, match="call start"):
        live.step(1)
    assert live.finish() == {}
    with pytest.raises(InputError, match="no param_groups"):
        live.start(object())


@pytest.mark.parametrize("every", [0, -3, 1.5, "10"])
def test_steps_between_measurements_are_a_number(every):
    model = make_model("gpt2")
    with pytest.raises(InputError, match="every="):
        Live(model, torch.randint(0, 11, (3, 2, 6)), temperature=1.0, every=every)


@given(
    every=st.integers(1, 5),
    steps=st.integers(1, 7),
    first=st.integers(0, 6),
    ends=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=6, deadline=None)
def test_it_measures_at_the_steps_asked_for(every, steps, first, ends):
    model = make_model("gpt2")
    live = Live(
        model, torch.randint(0, 11, (3, 2, 6)), temperature=1.0, every=every, max_overhead=1e-9, at_start=ends[0],
        at_end=ends[1],
    )  # fmt: skip
    seen = {first: live.start(torch.optim.SGD(model.parameters(), 0.1), step=first)}
    for step in range(first + 1, first + steps + 1):
        seen[step] = live.step(step)
    last = first + steps
    seen[last] = seen[last] | live.finish()
    due = {step for step in range(first + 1, last + 1) if step % every == 0}
    due |= {0} if ends[0] and first == 0 else set()
    due |= {last} if ends[1] else set()
    assert {step for step, figures in seen.items() if PREFIX + "psi" in figures} == due
    assert live.measured == len(due)
