"""Which λ of F steps descend, against the steps themselves: −Δθ/η = c∇L + λmθ is solved for c and λ."""

import logging

import pytest
import torch
from torch import nn

from tests.conftest import make_model, make_pool
from villani.dynamics.schedules import ConstantMemory
from villani.integrations import gradients
from villani.integrations.descent import decay_of
from villani.integrations.figures import PREFIX
from villani.integrations.gradients import GradientWatch
from villani.integrations.live import Live

RATE, DECAY = 0.05, 0.1
IDS = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(3))


def quiet_model():
    model = make_model("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def mean_loss(model, ids):
    logits = model(input_ids=ids).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def solved(change, gradient, parameters):
    """(c, λ) and relative residual of −Δθ/η = c∇L + λθ, by least squares."""
    design = torch.stack([gradient, parameters], 1)
    found = torch.linalg.lstsq(design, -change / RATE).solution
    return float(found[0]), float(found[1]), float((design @ found + change / RATE).norm() / (change / RATE).norm())


def one_step(prepare=None, optimizer=None, scale=None, **settings):
    """A step of SGD in a plain loop, what Live says of it, and what it was."""
    model, pool = quiet_model(), make_pool(4)

    stepper = (optimizer or (lambda m: torch.optim.SGD(m.parameters(), lr=RATE, weight_decay=DECAY)))(model)
    live = Live(model, pool, temperature=0.2, **settings)
    live.start(stepper, scale=scale)
    before = flat(model.parameters())
    loss = mean_loss(model, IDS)
    gradient = flat(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))
    ((scale() if scale else 1.0) * loss).backward()
    if prepare:
        prepare(model)
    stepper.step()
    stepper.zero_grad()
    live.step(1)
    figures = {name.removeprefix(PREFIX): value for name, value in live.measure(1).items()}
    return figures, solved(flat(model.parameters()) - before, gradient, before), live


def test_a_plain_step_descends_f_at_its_weight_decay():
    figures, (factor, decay, residual), _ = one_step()
    assert residual < 1e-10
    assert (figures["lambda"], figures["lambda_is_of_F"], figures["changed_steps"]) == (DECAY, 1.0, 0.0)
    assert figures["descended_lambda"] == pytest.approx(decay / factor, rel=1e-9)
    assert figures["gradient_factor"] == pytest.approx(factor, rel=1e-9)


def test_clipping_leaves_the_decay_alone_so_that_lambda_is_larger(caplog):
    figures, (factor, decay, residual), live = one_step(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.2))
    assert residual < 1e-10
    assert factor < 0.5
    assert decay == pytest.approx(DECAY)
    assert (figures["lambda"], figures["lambda_is_of_F"], figures["changed_steps"]) == (DECAY, 0.0, 1.0)
    assert figures["gradient_factor"] == pytest.approx(factor, rel=1e-6)
    assert figures["descended_lambda"] == pytest.approx(decay / factor, rel=1e-6)
    assert "gradients were scaled before 1 of 1 steps" in caplog.text
    assert list(live.descent.why) == ["clipped"]
    loose, _, _ = one_step(lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e6))  # a clip that does not act
    assert loose["lambda_is_of_F"] == 1.0


def test_a_clip_since_the_last_measurement_counts_although_the_last_step_was_not_clipped():
    model, pool = quiet_model(), make_pool(4)
    stepper = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=DECAY)
    live = Live(model, pool, temperature=0.2)
    live.start(stepper)
    told = []
    for step, limit in enumerate([0.1, 0.1, 1e6, 1e6], 1):
        mean_loss(model, IDS).backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        stepper.step()
        stepper.zero_grad()
        live.step(step)
        if step >= 3:
            told.append(live.measure(step))
    assert [row[PREFIX + "changed_steps"] for row in told] == [2.0, 0.0]
    assert [row[PREFIX + "lambda_is_of_F"] for row in told] == [0.0, 1.0]
    assert [row[PREFIX + "descended_lambda"] for row in told] == [DECAY, DECAY]


def noisy(model):
    for p in model.parameters():
        p.grad += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)


@pytest.mark.parametrize("change", [noisy, lambda m: nn.utils.clip_grad_value_(m.parameters(), 1e-3)])
def test_gradients_changed_otherwise_belong_to_no_lambda(change):
    figures, (_, _, residual), live = one_step(change)
    assert residual > 1e-2
    assert figures["lambda_is_of_F"] == 0.0
    assert "descended_lambda" not in figures
    assert "not by a factor" in live.descent.why["bent"]


@pytest.mark.parametrize("broken", [False, True])
def test_steps_that_are_not_seen_are_told_and_stopped_by_nothing(broken, monkeypatch):
    model, pool = quiet_model(), make_pool(4)
    live, stepper = Live(model, pool, temperature=0.2), torch.optim.SGD(model.parameters(), lr=RATE)
    live.start(stepper)
    if broken:
        mean_loss(model, IDS).backward()
        monkeypatch.setattr(gradients, "uneven", lambda *_: 1 / 0)
    else:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    stepper.step()
    live.step(1)
    monkeypatch.undo()
    assert live.measure(1)[PREFIX + "lambda_is_of_F"] == 0.0
    assert "unseen" in live.descent.why


def test_a_loss_that_cannot_be_compared_costs_the_comparison_only():
    model, pool = quiet_model(), make_pool(4)
    live, stepper = Live(model, pool, temperature=0.2), torch.optim.SGD(model.parameters(), lr=RATE)
    live.start(stepper)
    live.training_loss = lambda objective: 1 / 0
    mean_loss(model, IDS).backward()
    stepper.step()
    live.step(1)
    figures = live.measure(1)
    assert figures[PREFIX + "hessian_trace"]
    assert figures[PREFIX + "lambda_is_of_F"] == 0.0
    assert "ZeroDivisionError" in live.descent.why["comparison"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_of_a_grad_scaler_is_no_clip(fused):
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)  # no power of two: dividing it out again rounds
    model, pool = quiet_model().float(), make_pool(4)
    stepper = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=DECAY, fused=fused)
    live = Live(model, pool, temperature=0.2)
    live.start(stepper, scale=scaler.get_scale)
    for step, limit in enumerate([None, 0.1], 1):
        loss = mean_loss(model, IDS)
        slopes = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        scaler.scale(loss).backward()
        if limit:
            scaler.unscale_(stepper)
            nn.utils.clip_grad_norm_(model.parameters(), limit)
        scaler.step(stepper)
        scaler.update()
        stepper.zero_grad()
        live.step(step)
        figures = live.measure(step)
        factor = 1.0 if limit is None else limit / float(flat(slopes).norm())
        assert figures[PREFIX + "gradient_factor"] == pytest.approx(factor, rel=1e-4)
        assert figures[PREFIX + "lambda_is_of_F"] == float(limit is None)


def test_a_closure_is_looked_at_after_it_ran():
    model = quiet_model()
    stepper = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=DECAY)
    watch = GradientWatch(model, stepper)

    def closure():
        stepper.zero_grad()
        loss = mean_loss(model, IDS)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        closure.norm = float(flat(torch.autograd.grad(mean_loss(model, IDS), list(model.parameters()))).norm())
        return loss

    stepper.step(closure)
    seen = watch.take()
    assert (seen.taken, seen.changed, seen.bent, seen.unseen) == (1, 1, 0, 0)
    assert seen.factor == pytest.approx(0.1 / closure.norm, rel=1e-5)
    watch.close()
    stepper.step(closure)
    assert watch.take().taken == 0


def test_dropout_trains_with_another_loss_than_l():
    figures, _, live = one_step(lambda m: [setattr(x, "p", 0.2) for x in m.modules() if isinstance(x, nn.Dropout)])
    assert figures["lambda_is_of_F"] == 0.0
    assert "descended_lambda" not in figures
    assert "dropout" in live.descent.why["training mode"]


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda m: setattr(m.transformer.wte, "padding_idx", int(IDS[0, 1])), "padding_idx="),
        (lambda m: setattr(m.transformer.wte, "scale_grad_by_freq", True), "by frequency"),
        (lambda m: m.transformer.wpe.weight.register_hook(lambda g: 2 * g), "gradient hook"),
    ],
)
def test_gradients_that_backward_alters_are_not_those_of_l(alter, words):
    def retrace(model):
        plain = flat(p.grad for p in model.parameters())
        alter(model)
        model.zero_grad()
        mean_loss(model, IDS).backward()
        assert not torch.allclose(flat(p.grad for p in model.parameters()), plain)

    figures, (_, _, residual), live = one_step(retrace)
    assert residual > 1e-3
    assert figures["lambda_is_of_F"] == 0.0
    assert words in live.descent.why["altered"]


def test_a_backward_hook_that_makes_products_wrong_is_not_measured(caplog):
    def retrace(model):
        model.lm_head.register_full_backward_hook(lambda m, i, o: (2 * i[0],))

    figures, _, live = one_step(retrace)
    assert "psi" not in figures
    assert live.measured == 0
    assert "backward pass of its own" in caplog.text


def test_a_lambda_that_was_given_is_of_f_only_where_the_run_has_it():
    assert one_step(weight_decay=DECAY)[0]["lambda_is_of_F"] == 1.0
    other = one_step(weight_decay=0.3)[0]
    assert (other["lambda"], other["lambda_is_of_F"], other["descended_lambda"]) == (0.3, 0.0, DECAY)
    assert one_step(decay="all")[0]["lambda_is_of_F"] == 1.0
    assert one_step(decay="nanogpt")[0]["lambda_is_of_F"] == 0.0

    def clip(model):
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)

    effective = one_step(clip)[0]["descended_lambda"]
    assert one_step(clip, weight_decay=effective)[0]["lambda_is_of_F"] == 0.0  # a clip is no constant factor


def test_a_decay_that_changes_and_rates_that_differ_for_a_step_are_noticed():
    model, pool = quiet_model(), make_pool(4)
    halves = [*model.parameters()][:3], [*model.parameters()][3:]
    stepper = torch.optim.SGD([{"params": halves[0]}, {"params": halves[1]}], lr=RATE, weight_decay=DECAY)
    live = Live(model, pool, temperature=0.2)
    live.start(stepper)
    why = []
    for step in range(4):
        mean_loss(model, IDS).backward()
        stepper.param_groups[0]["lr"] = RATE * (2 if step == 1 else 1)
        for group in stepper.param_groups:
            group["weight_decay"] = DECAY * (2 if step >= 3 else 1)
        stepper.step()
        stepper.param_groups[0]["lr"] = RATE  # as after a scheduler that meets the other group's rate
        live.step(step)
        live.measure(step)
        why.append(list(live.descent.why))
    assert why == [[], ["metric"], [], ["schedule"]]


class Doubled(torch.optim.SGD):
    """Decays twice as much as it is told."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
        return super().step(closure)


class Ahead(torch.optim.Optimizer):
    """A wrapper that is no gradient descent, and holds one that is."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups, self.defaults = optimizer, optimizer.param_groups, {}


def halves(p, **other):
    return [{"params": p[:3]} | other, {"params": p[3:]}]


@pytest.mark.parametrize(
    ("make", "objective", "words"),
    [
        (lambda p: Doubled(p, lr=1.0, weight_decay=0.1), None, "Doubled is no optimiser of torch's own"),
        (lambda p: Ahead(torch.optim.SGD(p, lr=1.0, weight_decay=0.1)), None, "Ahead is no optimiser of torch's own"),
        (lambda p: Doubled(p, lr=1.0), None, "Doubled is no"),
        (lambda p: torch.optim.ASGD(p), None, "lambd"),
        (lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1, maximize=True), None, "maximises"),
        (lambda p: torch.optim.RMSprop(p, weight_decay=0.1), None, "no gradient descent on F"),
        (lambda p: torch.optim.NAdam(p), 0.0, "preconditions"),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), 0.1, "preconditions"),
        (lambda p: torch.optim.SGD(halves(p, lr=2.0), lr=1.0, weight_decay=0.1), 0.1, "different lr (1, 2)"),
        (lambda p: torch.optim.SGD(halves(p, momentum=0.9), lr=1.0, weight_decay=0.1), 0.1, "different momentum"),
        (lambda p: torch.optim.SGD(p[2:], lr=1.0, weight_decay=0.1), 0.1, "2 tensors of θ are in no group"),
        (lambda p: torch.optim.SGD([*p, nn.Parameter(torch.ones(2))], lr=1.0), 0.0, "1 tensors that are not of θ"),
    ],
)  # fmt: skip
def test_steps_that_are_no_gradient_steps_on_f(make, objective, words):
    model = make_model("gpt2")
    decay = decay_of(make(list(model.parameters())), model)
    assert decay.objective == objective
    assert words in (decay.why if objective is None else decay.preconditioned)


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}]
)
def test_sgd_and_what_accelerate_wraps_it_in_descend_f_at_their_weight_decay(settings):
    accelerate = pytest.importorskip("accelerate")
    model = make_model("gpt2")
    plain = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1, **settings)
    for optimizer in (plain, accelerate.Accelerator(cpu=True).prepare(plain)):
        decay = decay_of(optimizer, model)
        assert (decay.objective, decay.preconditioned) == (0.1, "")


def test_words_are_told_once_for_each_set_of_reasons(caplog):
    caplog.set_level(logging.WARNING)
    model, pool = quiet_model(), make_pool(4)
    stepper = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    live = Live(model, pool, temperature=0.2, schedule=ConstantMemory(cap=1.0))
    live.start(stepper)
    for step in range(3):
        mean_loss(model, IDS).backward()
        stepper.step()
        stepper.zero_grad()
        live.step(step)
        assert live.measure(step)[PREFIX + "lambda_is_of_F"] == 0.0
    assert caplog.text.count("AdamW is no gradient descent on F") == 1
    assert "no λ of F belongs to its steps" in caplog.text


def test_weights_moved_by_a_hook_after_the_step_are_no_descent_of_F():
    """A decay of its own: λ solved from the steps is not the optimiser's."""

    def hooked(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=DECAY)
        optimizer.register_step_post_hook(lambda *_: [p.data.mul_(0.99) for p in model.parameters()] and None)
        return optimizer

    figures, (_, found, _), live = one_step(optimizer=hooked)
    assert found == pytest.approx(DECAY + 0.01 / RATE, rel=0.02)
    assert figures["lambda_is_of_F"] == 0
    assert "may move weights" in live.descent.why["metric"]
