import json
import math

import numpy as np
import pytest
import torch

from villani.dynamics.schedules import AdamC, ConstantMemory, GuardFollowing, LeastCertificate
from villani.dynamics.training import train
from villani.errors import InputError
from villani.inputs.models import load_model


def optimiser(decays=(0.1, 0.0, 0.02), rate=0.5, kind=torch.optim.SGD):
    return kind([{"params": [torch.ones(2, requires_grad=True)], "weight_decay": d} for d in decays], lr=rate)


def test_memory_stays_constant_under_a_falling_rate_up_to_the_cap():
    stepper, schedule = optimiser(), ConstantMemory(cap=1.0)
    pace = torch.optim.lr_scheduler.LambdaLR(stepper, lambda k: 1 - k / 20)
    schedule.attach(stepper)
    for _k in range(1, 21):
        stepper.step()
        pace.step()
        schedule.step()
        rates = [group["lr"] for group in stepper.param_groups]
        assert schedule.current[1] == 0.0  # what did not decay does not
        for i, start in ((0, 0.1), (2, 0.02)):
            if rates[i] * 1.0 > start * 0.5:
                assert rates[i] * schedule.current[i] == pytest.approx(start * 0.5, rel=1e-12)
            else:
                assert schedule.current[i] == 1.0
    assert rates[0] == 0
    assert schedule.current == [1.0, 0.0, 1.0]


def test_a_warm_up_starts_from_the_peak_not_from_its_first_rate():
    stepper, schedule = optimiser((0.1,)), ConstantMemory(cap=10.0)
    torch.optim.lr_scheduler.LinearLR(stepper, 0.1, total_iters=5)
    schedule.attach(stepper)
    assert schedule.current == [pytest.approx(1.0)]  # a tenth of the rate, ten times the decay


def test_the_decay_that_is_written_is_the_one_that_the_optimiser_applies():
    schedule = LeastCertificate([0.5, 0.5])
    stepper = optimiser((0.1,))
    tensor = stepper.param_groups[0]["params"][0]
    schedule.attach(stepper)
    for k in range(2):
        tensor.grad = torch.zeros(2)
        before = tensor.detach().clone()
        stepper.step()
        torch.testing.assert_close(tensor.detach(), before * (1 - 0.5 * schedule.decays(0.1)[k]).astype(np.float32))
        schedule.step()


def test_a_planned_schedule_refuses_another_rate():
    stepper, schedule = optimiser((0.1,)), LeastCertificate([0.5, 0.4])
    schedule.attach(stepper)
    with pytest.raises(InputError, match=r"step 1: learning rate 0.5 in place of the planned 0.4"):
        schedule.step()


def test_the_guard_is_a_floor_with_a_cap_and_averages_orbit_by_orbit():
    told = iter([{"a": 0.04, "b": -1.0}, {"a": 0.0, "b": 0.36}, {"a": 100.0, "b": 0.0}, {"a": 0.0, "b": 0.0}])
    stepper = optimiser((0.1, 0.0))
    schedule = GuardFollowing(lambda step: next(told), every=2, cap=3.0, smoothing=0.5)
    schedule.attach(stepper)
    found = []
    for k in range(8):
        assert schedule.measures_next == (k % 2 == 1)
        schedule.step()
        found.append(schedule.current)
    # by orbit: a 0.04, 0.02, 50.01, 25.005; b −1, −0.32, −0.16, −0.08: the largest average
    expected = [0.1, 0.2, 0.2, 0.02**0.5, 0.02**0.5, 3.0, 3.0, 3.0]
    assert [row[0] for row in found] == pytest.approx(expected)
    assert all(row[1] == 0.0 for row in found)


def test_a_resumed_schedule_goes_on_where_it_was():
    def guard(step):
        return {"a": 0.01 * step}

    whole = GuardFollowing(guard, every=1, cap=9.0)
    whole.attach(optimiser((0.1,)))
    first, stepper = GuardFollowing(guard, every=1, cap=9.0), optimiser((0.1,))
    first.attach(stepper)
    for _ in range(5):
        whole.step()
        first.step()
    saved, groups = json.loads(json.dumps(first.state_dict())), stepper.state_dict()
    again, fresh = GuardFollowing(guard, every=1, cap=9.0), optimiser((0.1,))
    fresh.load_state_dict(groups)  # λ as it was then, which must not become λ₀
    again.load_state_dict(saved)
    again.attach(fresh)
    assert again.current == whole.current
    again.step()
    whole.step()
    assert again.current == whole.current
    assert again.state_dict() == whole.state_dict()
    fresh.load_state_dict(groups)  # makes new groups
    again.step()
    assert fresh.param_groups[0]["weight_decay"] == again.current[0] > groups["param_groups"][0]["weight_decay"]
    broken = GuardFollowing(lambda step: {"a": float("nan")}, every=1, cap=9.0)
    broken.attach(fresh)
    with pytest.raises(InputError, match="λ²_guard of a is nan"):
        broken.step()
    with pytest.raises(InputError, match="2 groups, the schedule's state 1"):
        again.attach(optimiser((0.1, 0.2)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConstantMemory(cap=0.0), "cap=0"),
        (lambda: ConstantMemory(cap=1.0).step(), "call attach"),
        (lambda: ConstantMemory(cap=1.0).attach(optimiser((0.0,))), "no group"),
        (lambda: GuardFollowing(lambda step: {}, every=0, cap=1.0), "every=0"),
        (lambda: GuardFollowing(lambda step: {}, every=1, cap=1.0, smoothing=2.0), "smoothing=2"),
        (lambda: LeastCertificate([]), "rates"),
        (lambda: LeastCertificate([0.1, 0.0]), "rates"),
    ],
)
def test_bad_schedules_are_told(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_training_applies_a_schedule_and_says_that_no_one_lambda_belongs_to_it():
    ids = torch.randint(0, 50, (20, 16), generator=torch.Generator().manual_seed(0))
    arguments = {"steps": 6, "batch": 4, "learning_rate": 0.1, "seed": 0, "optimizer": "sgd", "weight_decay": 0.5}

    def run(schedule):
        model = load_model("builtin:tiny?width=8&layers=1").model
        return model, train(model, ids, ids, schedule="constant", decay_schedule=schedule, **arguments)

    plain, told = run(None)
    same, _ = run(ConstantMemory(cap=9.0))  # a constant rate leaves λ alone
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), same.parameters(), strict=True))
    late, found = run(LeastCertificate([0.1] * 6))
    assert not any(torch.equal(p, q) for p, q in zip(plain.parameters(), late.parameters(), strict=True))
    assert told.objective_weight_decay == 0.5
    assert found.objective_weight_decay is None
    assert "LeastCertificate" in found.why


def test_least_certificate_keeps_the_shrinkage_of_constant_decay():
    rates = np.array([0.3, 0.1, 0.2, 0.4])
    schedule = LeastCertificate(rates)
    assert np.prod(1 - rates * schedule.decays(0.5)) == pytest.approx(np.prod(1 - rates * 0.5), rel=1e-12)
    assert (np.diff(schedule.decays(0.5)) > 0).all()
    assert math.isclose(schedule.decays(1e-9)[0], 1e-9, rel_tol=1e-6)  # without memory to lose, constant


def test_adamc_decays_as_its_paper_says_where_weights_are_normalised_and_as_ever_elsewhere():
    """Against the written-out update: γ²/γ_max of λ for one tensor, γ for the other, none for the third."""
    rates = [0.01, 0.04, 0.02, 0.005]
    a, b, c = (torch.linspace(-1, 1, 5).add(k).requires_grad_() for k in range(3))
    stepper = torch.optim.AdamW(
        [{"params": [a, b], "weight_decay": 0.5}, {"params": [c], "weight_decay": 0.0}], lr=0.04
    )
    for group in stepper.param_groups:
        group |= {"initial_lr": 0.04, "lr": rates[0]}
    schedule = AdamC(plain=[b, c])
    schedule.attach(stepper)
    expected = [t.detach().double().clone() for t in (a, b, c)]
    moments = [(torch.zeros(5).double(), torch.zeros(5).double()) for _ in range(3)]
    for k, rate in enumerate(rates):
        gradients = [torch.sin(torch.arange(5.0) + k + 3 * i) for i in range(3)]
        for i, (tensor, g) in enumerate(zip((a, b, c), gradients, strict=True)):
            tensor.grad = g.clone()
            m, v = (0.9 * moments[i][0] + 0.1 * g, 0.999 * moments[i][1] + 0.001 * g**2)
            moments[i] = m, v
            update = (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            shrunk = (0.5 * rate**2 / 0.04, 0.5 * rate, 0.0)[i]
            expected[i] = expected[i] - rate * update - shrunk * expected[i]
        stepper.step()
        for group in stepper.param_groups:
            group["lr"] = rates[min(k + 1, 3)]
        schedule.step()
    for tensor, value in zip((a, b, c), expected, strict=True):
        torch.testing.assert_close(tensor.detach().double(), value, rtol=1e-5, atol=1e-6)
    assert sum(len(group["params"]) for group in stepper.param_groups) == 3


def test_adamc_of_a_cosine_decays_three_quarters_in_all():
    stepper, schedule = optimiser((0.3,), rate=0.5), AdamC()
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, 400)
    schedule.attach(stepper)
    total = plain = 0.0
    for _ in range(400):
        rate = stepper.param_groups[0]["lr"]
        total, plain = total + rate * schedule.current[0], plain + rate * 0.3
        stepper.step()
        pace.step()
        schedule.step()
    assert total / plain == pytest.approx(0.75, rel=0.01)
