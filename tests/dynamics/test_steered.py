"""Decay that looks: cautious decay against its update written out, and the radial gap against plain gradients."""

import gc
import weakref

import pytest
import torch

from tests.dynamics.test_interrupted import Dies, Killed
from tests.dynamics.test_training import tokens
from villani.dynamics import interrupted
from villani.dynamics.schedules import AdamC
from villani.dynamics.steered import CautiousDecay, RadialGap, StartDecay
from villani.dynamics.training import Diverged, train
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.objective import Objective


@pytest.mark.parametrize("maximize", [False, True])
def test_cautious_decay_is_its_update_written_out(maximize):
    decays, rate, (first, second) = (0.7, 0.0), 0.05, (0.9, 0.95)
    tensors = [torch.linspace(-1, 1, 8).add(0.1 * k).requires_grad_() for k in range(3)]  # the last has no gradient
    groups = [{"params": [tensors[0], tensors[2]], "weight_decay": 0.7}, {"params": [tensors[1]], "weight_decay": 0.0}]
    stepper = torch.optim.AdamW(groups, lr=rate, betas=(first, second), maximize=maximize)
    schedule = CautiousDecay()
    schedule.attach(stepper)
    schedule.attach(stepper)  # again, as after a resume: decays once all the same
    expected = [t.detach().double().clone() for t in tensors]
    means = [torch.zeros(8).double() for _ in range(3)]
    squares = [torch.zeros(8).double() for _ in range(3)]
    masks = []
    for k in range(6):
        for i in (0, 1):
            g = torch.sin(torch.arange(8.0) * (i + 1) + 2 * k)
            tensors[i].grad = g.clone()
            g = -g.double() if maximize else g.double()
            means[i] = first * means[i] + (1 - first) * g
            squares[i] = second * squares[i] + (1 - second) * g * g
            update = means[i] / (1 - first ** (k + 1)) / ((squares[i] / (1 - second ** (k + 1))).sqrt() + 1e-8)
            mask = (update * expected[i] >= 0).double()
            masks.append(float(mask.mean()))
            expected[i] = (1 - rate * decays[i] * mask) * expected[i] - rate * update
        stepper.step()
        schedule.step()
        assert schedule.current == [0.7, 0.0]  # what is told between steps
    assert 0.2 < sum(masks) / len(masks) < 0.8
    for tensor, value in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [False, True])
def test_decay_towards_the_start_is_its_update_written_out(given):
    """θ ← θ − ηλ(θ − θ₀) − η m̂/(√v̂ + ε) under a rate that falls; what is not in a group that decays is plain Adam's."""
    decays, (first, second) = (2.0, 0.0), (0.9, 0.95)
    tensors = [torch.linspace(-1, 1, 8).add(0.1 * k).requires_grad_() for k in range(2)]
    start = [t.detach().clone() for t in tensors]
    schedule = StartDecay(tensors, start if given else None)
    with torch.no_grad():
        if given:  # as a run that was killed: its weights are no longer the start
            tensors[0].add_(0.5)
    groups = [{"params": [t], "weight_decay": d} for t, d in zip(tensors, decays, strict=True)]
    stepper = torch.optim.AdamW(groups, lr=1.0, betas=(first, second))
    schedule.attach(stepper)
    expected = [t.detach().double().clone() for t in tensors]
    means, squares = ([torch.zeros(8).double() for _ in range(2)] for _ in range(2))
    for k in range(5):
        rate = 0.05 / (k + 1)
        for group in stepper.param_groups:
            group["lr"] = rate
        for i in (0, 1):
            g = torch.sin(torch.arange(8.0) * (i + 1) + 2 * k)
            tensors[i].grad = g.clone()
            g = g.double()
            means[i] = first * means[i] + (1 - first) * g
            squares[i] = second * squares[i] + (1 - second) * g * g
            update = means[i] / (1 - first ** (k + 1)) / ((squares[i] / (1 - second ** (k + 1))).sqrt() + 1e-8)
            expected[i] = expected[i] - rate * decays[i] * (expected[i] - start[i].double()) - rate * update
        stepper.step()
        schedule.step()
        assert schedule.current == [2.0, 0.0]
    for tensor, value in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_a_schedule_that_is_detached_holds_no_optimiser():
    """No circle is left, so that its state, twice the size of θ, is free at once."""
    tensor = torch.ones(3, requires_grad=True)
    schedule, stepper = StartDecay([tensor]), torch.optim.AdamW([tensor], weight_decay=0.1)
    schedule.attach(stepper)
    held = weakref.ref(stepper)
    schedule.detach()
    assert schedule.current == []
    gc.disable()
    try:
        del stepper
        assert held() is None
    finally:
        gc.enable()


def test_decay_towards_the_start_refuses_what_it_does_not_know():
    one, other = (torch.ones(n, requires_grad=True) for n in (2, 3))
    with pytest.raises(InputError, match="not those of the parameters"):
        StartDecay([one], [other])
    with pytest.raises(InputError, match="whose start is known"):
        StartDecay([one]).attach(torch.optim.AdamW([one, other], weight_decay=0.1))
    with pytest.raises(InputError, match=r"towards the start is for torch\.optim\.AdamW, not SGD"):
        StartDecay([one]).attach(torch.optim.SGD([one], lr=0.1, weight_decay=0.1))


def test_cautious_decay_refuses_an_optimiser_whose_decay_is_another():
    with pytest.raises(InputError, match=r"torch\.optim\.AdamW, not SGD"):
        CautiousDecay().attach(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1, weight_decay=0.1))


def gradients(model, ids):
    """Plain torch: ∇ of the mean loss per predicted token."""
    model.zero_grad()
    logits = model(input_ids=ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return [p.grad.detach().double().clone() for p in model.parameters()]


def objectives(model):
    return [Objective(model, [{"input_ids": ids[:6], "labels": ids[:6]}]) for ids in (tokens(0)[0], tokens(7)[0])]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_radial_gap_is_what_plain_gradients_say(kind):
    model = load_model("builtin:tiny?width=8&layers=1").model
    parts = {
        True: [p for p in model.parameters() if p.dim() > 1],
        False: [p for p in model.parameters() if p.dim() < 2],
    }
    groups = [{"params": parts[True], "weight_decay": 0.1}, {"params": parts[False], "weight_decay": 0.0}]
    make = torch.optim.AdamW if kind == "adamw" else torch.optim.SGD
    stepper = make(groups, lr=0.05)
    schedule = RadialGap(*objectives(model), every=2, cap=1e6, smoothing=0.25)
    schedule.attach(stepper)
    assert schedule.current == [0.0, 0.0]
    expected, values = None, []
    for k in range(4):
        for p, g in zip(model.parameters(), gradients(model, tokens(0)[0][:3]), strict=True):
            p.grad = g.float()
        stepper.step()
        if k % 2:
            seen, unseen = (gradients(model, tokens(seed)[0][:6]) for seed in (0, 7))
            inner = norm = 0.0
            for p, new, old in zip(model.parameters(), unseen, seen, strict=True):
                if p.dim() > 1:
                    state, metric = stepper.state[p], 1.0
                    if kind == "adamw":
                        metric = (state["exp_avg_sq"].double() / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8
                    inner += float(((new - old) * p.detach().double() / metric).sum())
                    norm += float(p.detach().double().pow(2).sum())
            value = inner / norm
            expected = value if expected is None else 0.75 * expected + 0.25 * value
            values.append(value)
            assert schedule.measures_next
        schedule.step()
    assert schedule.average == pytest.approx(expected, rel=1e-5)
    assert values[1] > 0  # trained on `seen`, it overfits along θ
    assert schedule.current == [pytest.approx(max(0.0, expected), rel=1e-5), 0.0]
    schedule.cap = 1e-9
    schedule.step()  # which measures nothing
    assert schedule.current == [1e-9, 0.0]


def test_a_gap_below_zero_asks_for_no_decay():
    model = load_model("builtin:tiny?width=8&layers=1").model
    schedule = RadialGap(*objectives(model), every=1, cap=1.0)
    schedule.attach(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    schedule.gap = lambda: -3.0
    schedule.step()
    assert (schedule.average, schedule.current) == (-3.0, [0.0])


def test_what_cannot_be_measured_is_refused():
    model, other = (load_model("builtin:tiny?width=8&layers=1").model for _ in range(2))
    with pytest.raises(InputError, match="two models"):
        RadialGap(objectives(model)[0], objectives(other)[1], every=1, cap=1.0)
    for name, value in (("every", 0), ("cap", -1.0), ("smoothing", 1.5)):
        with pytest.raises(InputError, match=name):
            RadialGap(*objectives(model), **{"every": 1, "cap": 1.0} | {name: value})
    schedule = RadialGap(*objectives(model), every=1, cap=1.0)
    schedule.attach(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match="step 1: the radial gap is nan"):
        schedule.step()


def test_a_run_that_diverges_before_it_is_measured_is_told_as_diverged():
    model = load_model("builtin:tiny?width=8&layers=1").model
    schedule = RadialGap(*objectives(model), every=1, cap=1.0)
    asked = {"steps": 9, "batch": 4, "learning_rate": 1e38, "seed": 0, "weight_decay": 0.5, "optimizer": "sgd"}
    with pytest.raises(Diverged) as error:
        train(model, *tokens(), decay_schedule=schedule, clip=None, **asked)
    assert error.value.step < 9


@pytest.mark.parametrize("kind", ["cautious", "gap", "adamc"])
def test_a_killed_run_under_a_schedule_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupted, "PATIENCE", -1.0)

    def trained(work=None, state=None):
        model = load_model("builtin:tiny?width=8&layers=1").model
        schedule = {
            "cautious": CautiousDecay, "gap": lambda: RadialGap(*objectives(model), every=2, cap=9.0),
            "adamc": lambda: AdamC([next(model.parameters())]),
        }[kind]()  # fmt: skip
        train(
            model, *tokens(), steps=9, batch=4, learning_rate=1e-2, seed=0, weight_decay=0.5, decay_schedule=schedule,
            work=work, state=state,
        )  # fmt: skip
        return [p.detach().clone() for p in model.parameters()]

    whole = trained()
    with pytest.raises(Killed):
        trained(Dies(5), tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole, trained(None, tmp_path / "run"), strict=True))


def test_what_a_decay_by_another_rule_is_of_f_is_told_as_such():
    model, common = load_model("builtin:tiny?width=8&layers=1").model, {"steps": 1, "batch": 1, "seed": 0}
    for schedule, words in ((StartDecay(model.parameters()), "another rule"), (AdamC([]), "λ varies")):
        found = train(
            model, *tokens(), learning_rate=1e-2, weight_decay=0.5, decay_schedule=schedule, **common,
        )  # fmt: skip
        assert found.objective_weight_decay is None
        assert words in found.why
        assert "θ + P⁻¹∇L" not in found.why  # AdamW's own fixed points, which these do not have
