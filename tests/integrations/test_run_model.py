"""A run's model as measurements see it: statistics against plain autograd, refusals, and processes that agree."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.integrations.ranks import cut_network, inputs, mean_square, network, run_ranks
from tests.integrations.test_untouched import snapshot
from villani.errors import InputError
from villani.integrations.run_model import RunModel

SIZE, SECONDS, SEED = 2, 40.0, 11
Replicated = nn.parallel.DistributedDataParallel


def statistics(run, weight_decay=0.0):
    """(5,) of a run's model: L, ‖∇L‖², ⟨∇L, θ⟩, tr∇²L, ‖θ‖²."""
    with run.lent():
        found = run.measured(run.objective("all", weight_decay), SEED)
    estimates = (found.loss, found.gradient_norm_squared, found.gradient_dot_parameters, found.hessian_trace)
    return [*(e.value for e in estimates), found.decayed_norm_squared]


def plain_statistics():
    """The same but for the trace, which depends on probes: groups weigh alike; of pairs the distinct ones count."""
    model = network()
    tensors = list(model.parameters())
    theta = torch.cat([t.detach().flatten() for t in tensors])
    losses = [mean_square(model, x) for x in inputs()]
    slopes = [torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors)]) for loss in losses]
    pairs = list(itertools.combinations(slopes, 2))
    return [
        float(sum(losses).detach()) / 3, float(sum(a @ b for a, b in pairs)) / len(pairs),
        float(sum(slopes) @ theta) / 3, float(theta @ theta),
    ]  # fmt: skip


def exact_trace():
    model = network()
    tensors = list(model.parameters())
    flat, groups = torch.cat([t.detach().flatten() for t in tensors]), inputs()

    def loss(theta):
        pieces = theta.split([t.numel() for t in tensors])
        named = {n: p.view(t.shape) for (n, t), p in zip(model.named_parameters(), pieces, strict=True)}
        return sum(torch.func.functional_call(model, named, (x,)).square().mean() for x in groups) / 3

    return float(torch.func.hessian(loss)(flat).trace())


def test_the_statistics_of_a_plain_model_are_those_of_autograd_and_it_is_left_as_it_was():
    model = network().train()
    model[0].weight.grad = torch.ones(5, 3, dtype=torch.float64)
    before = snapshot(model)
    run = RunModel(model, inputs(), 400, "hutchinson", mean_square)
    loss, slope, dot, trace, norm = statistics(run)
    assert [loss, slope, dot, norm] == pytest.approx(plain_statistics(), rel=1e-10)
    assert trace == pytest.approx(exact_trace(), rel=0.05)  # of 1200 probes
    assert snapshot(model) == before
    assert run.model is model
    assert not run.processes.several


@pytest.mark.parametrize(("groups", "probes"), [(3, 1), (3, 4)])
def test_a_trial_is_one_loss_and_a_measurement_is_taken_to_be_many(groups, probes):
    model = network()
    run = RunModel(model, inputs()[:groups], probes, None, mean_square)
    with run.lent():
        work, times = run.trial()
        assert float(work()) == pytest.approx(float(mean_square(network(), inputs()[0]).detach()), rel=1e-12)
    assert times == 20 * probes * groups


def test_a_freeze_of_the_run_is_seen_by_the_next_measurement():
    model = network()
    run = RunModel(model, inputs(), 1, None, mean_square)
    with run.lent():
        assert run.objective("all", 0.3).parameters.size == 26
    model[0].bias.requires_grad_(False)
    with run.lent():
        objective = run.objective("nanogpt", 0.3)
    assert (objective.parameters.size, objective.parameters.decayed_size, objective.weight_decay) == (21, 20, 0.3)


def failing_at(bad, error):
    """A loss that fails at one group."""

    def loss_fn(model, x):
        if torch.equal(x, bad):
            raise error
        return mean_square(model, x)

    return loss_fn


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("bad\n text"), "bad text"),
        (KeyError("labels"), "these groups cannot be measured with this model: KeyError: 'labels'"),
        (ValueError("two\nlines"), "these groups cannot be measured with this model: ValueError: two lines"),
    ],
)
def test_a_bad_group_anywhere_is_refused_when_tried_out(number, error, line):
    model = network()
    before = snapshot(model)
    run = RunModel(model, inputs(), 1, None, failing_at(inputs()[number], error))
    with pytest.raises(InputError) as told:
        run.try_out("all", [])
    assert " ".join(str(told.value).split()) == line
    assert not run.tried
    assert snapshot(model) == before


def test_what_can_be_measured_is_tried_out_once():
    model = network()
    before, calls = snapshot(model), []

    def loss_fn(model, x):
        calls.append(len(x))
        return mean_square(model, x)

    run = RunModel(model, inputs(), 1, None, loss_fn)
    run.try_out("all", ["anything", 1])
    assert run.tried
    assert snapshot(model) == before
    assert len(calls) >= 3


def test_a_model_that_is_lent_comes_back_whatever_happens():
    model = network()
    before, run = snapshot(model), RunModel(model, inputs(), 1, None, mean_square)

    def fail():
        with run.lent():
            model[0].weight.data.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert snapshot(model) == before


def agreement(rank, size):
    """Statistics of copies and of parts, and what processes that were not started alike are refused with."""

    def frozen(model):
        model[0].bias.requires_grad_(rank == 1)
        return model

    def partly_whole():
        model = network()
        model[2].bias.data.fill_(float(rank))
        return fully_shard(model, mesh=init_device_mesh("cpu", (size,)), ignored_params={model[2].bias})

    def run(model, groups=None, trace="hutchinson", loss_fn=mean_square):
        return RunModel(model, groups or inputs(), 2, trace, loss_fn)

    def one_fails(model, x):
        if rank == 1 and torch.equal(x, inputs()[1]):
            raise ZeroDivisionError("mine")
        return mean_square(model, x)

    copies, parts = run(Replicated(network())), run(cut_network(size))
    figures = statistics(copies, 0.1), statistics(parts, 0.1)
    times = []
    for made in (copies, parts):
        with made.lent():
            work, count = made.trial()
            work()
            times.append(count)
    tried = {
        "nothing": (lambda: run(Replicated(network())), [1, "all"]),
        "nothing of parts": (lambda: run(cut_network(size)), [1, "all"]),
        "groups": (lambda: run(Replicated(network()), inputs()[: 2 + rank]), []),
        "groups of parts": (lambda: run(cut_network(size), [x + rank for x in inputs()]), []),
        "settings": (lambda: run(Replicated(network())), [1, "all" if rank else "hf"]),
        "parameters": (lambda: run(frozen(network()), loss_fn=mean_square), []),
        "whole": (lambda: run(partly_whole()), []),
        "way": (lambda: run(cut_network(size), trace="taylor"), []),
        "error": (lambda: run(Replicated(network()), loss_fn=one_fails), []),
        "error of parts": (lambda: run(cut_network(size), loss_fn=one_fails), []),
    }
    told = {}
    for name, (make, settings) in tried.items():
        made = make()
        if name == "parameters":  # copies that are kept alike by hand
            made = RunModel(made.model, inputs(), 2, "hutchinson", mean_square, Replicated(network()))
        try:
            made.try_out("all", settings)
            told[name] = "nothing"
        except InputError as error:
            told[name] = str(error)
        assert made.tried == (told[name] == "nothing")
    return figures, times, told


def test_processes_measure_the_same_and_refuse_what_differs(tmp_path):
    words = {
        "nothing": "nothing", "nothing of parts": "nothing", "groups": "process 1 has groups = ",
        "groups of parts": "process 1 has groups = ",
        "settings": "process 1 has settings = [1, 'all'], process 0 has [1, 'hf']: start them alike",
        "parameters": "process 1 has parameters = ", "whole": "process 1 has values of what each has whole = ",
        "way": "process 0: trace='taylor': cut weights have first derivatives only",
        "error": "process 1: ZeroDivisionError: mine",
        "error of parts": "process 1: ZeroDivisionError: mine",
    }  # fmt: skip
    results = run_ranks(SIZE, agreement, tmp_path, seconds=SECONDS)
    alone = statistics(RunModel(network(), inputs(), 2, "hutchinson", mean_square), 0.1)
    (copies, parts), times, told = results[0]
    assert (copies, parts) == results[1][0]  # to the bit
    assert copies == alone  # to the bit, too
    assert parts[:3] + parts[4:] == pytest.approx(plain_statistics(), rel=1e-10)
    assert parts[3] == pytest.approx(alone[3], rel=1e-4)  # finite differences with the same probes
    assert times == [20 * 2 * 2, 3 * (1 + 4 * 2)]  # two of three groups for one of two; gradients
    assert told == results[1][2]
    assert set(told) == set(words)
    for name, line in told.items():
        assert line.startswith(words[name]), (name, line)
        assert "\n" not in line
