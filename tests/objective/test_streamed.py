"""Losses, gradients and products by segments, against transformers and autograd on the whole model."""

import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from tests.sharded import write
from villani.curvature.group import GroupPass
from villani.curvature.hessian import HessianOperator
from villani.curvature.sketch import GradientSketch
from villani.curvature.trace import sampler_for
from villani.curvature.ways import Way
from villani.dynamics.sampler import Langevin
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.inputs.streaming import stream_from_memory
from villani.integrations.live import Live
from villani.objective.graph import trace_logits
from villani.objective.objective import Objective
from villani.objective.segments import stretches
from villani.objective.streamed import Tape, back_together
from villani.objective.trial import already_tried

KINDS = ["llama", "gpt-2", "gpt-neo", "qwen3", "gemma-2"]
IDS = torch.randint(0, 32, (3, 1, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharded")
    return {kind: write(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def objectives(folders):
    """Streamed ones in float64, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = streamed(folders[kind])
        return made[kind]

    return of


def streamed(folder, dtype=torch.float64, ids=IDS, **options):
    return Objective(load_model(folder, dtype=dtype, streamed=True).model, ids, **options)


def oracle(folder, ids, dtype=torch.float64):
    """(names, tensors, loss sum with its graph) of plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(dtype).eval()
    model.get_input_embeddings().padding_idx = None  # it would leave a row out of the gradient
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
    names, tensors = zip(*model.named_parameters(), strict=True)
    return names, tensors, loss


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_products_are_those_of_the_whole_model(folders, objectives, kind):
    objective = objectives(kind)
    names, tensors, loss = oracle(folders[kind], IDS[0])
    assert [p.name for p in objective.parameters.parameters] == list(names)
    generator = torch.Generator().manual_seed(2)
    v = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    gradient = torch.autograd.grad(loss, tensors, create_graph=True)
    curved = torch.autograd.grad(gradient, tensors, v, retain_graph=True)
    with objective.evaluating():
        tape = Tape(objective, next(objective.batches(0)), [lambda i: v[i], lambda i: v[i] if i == 3 else None])
        pieces = {piece.index: piece for piece in tape.back()}
        assert tape.loss() == pytest.approx(float(loss.detach()), rel=1e-6)
    assert sorted(pieces) == list(range(len(names)))
    of_one = torch.autograd.grad(gradient, tensors, [x if i == 3 else torch.zeros_like(x) for i, x in enumerate(v)])
    exact = 1e-10 if kind in ("gpt-2", "gpt-neo") else 1e-5  # others go through float32 inside, whatever θ is
    size, bend = (max(float(t.abs().max()) for t in of) for of in (gradient, curved))
    for index in range(len(names)):
        piece = pieces[index]
        assert torch.equal(piece.value, tensors[index])
        torch.testing.assert_close(piece.gradient, gradient[index].detach(), rtol=exact, atol=exact * size)
        torch.testing.assert_close(piece.products[0][1], curved[index], rtol=10 * exact, atol=10 * exact * bend)
    torch.testing.assert_close(pieces[3].products[1][1], of_one[3], rtol=10 * exact, atol=10 * exact * bend)


def test_the_residual_part_holds_the_errors_fixed(folders, objectives):
    """Its Hessian is that of ⟨p − y, z⟩: the whole one less the Gauss–Newton part."""
    objective = objectives("gpt-2")
    model = AutoModelForCausalLM.from_pretrained(
        folders["gpt-2"], dtype=torch.float64, attn_implementation="eager"
    ).eval()
    logits = model(input_ids=IDS[0], use_cache=False).logits[:, :-1].flatten(0, 1)
    errors = torch.softmax(logits.detach(), dim=-1) - torch.nn.functional.one_hot(IDS[0][:, 1:].flatten(), 32)
    tensors = list(model.parameters())
    v = [torch.ones_like(t) for t in tensors]
    gradient = torch.autograd.grad((errors * logits).sum(), tensors, create_graph=True)
    curved = torch.autograd.grad(gradient, tensors, v)
    with objective.evaluating():
        tape = Tape(objective, next(objective.batches(0)), [lambda i: v[i]])
        for piece in tape.back(residual=True):
            torch.testing.assert_close(piece.products[0][1], curved[piece.index], rtol=1e-9, atol=1e-9)


def test_batches_of_one_group_are_summed_and_masked_positions_do_not_count(folders):
    """Two rows in two passes, a part of one of them not predicted."""
    labels = IDS[:2, 0].clone()
    labels[1, 4:] = -100
    objective = streamed(folders["gpt-2"], ids=[{"input_ids": IDS[:2, 0], "labels": labels}], micro_tokens=9)
    _, tensors, first = oracle(folders["gpt-2"], IDS[0])
    _, others, second = oracle(folders["gpt-2"], IDS[1][:, :4])
    with objective.evaluating():
        tapes = [Tape(objective, batch) for batch in objective.batches(0)]
        assert [len(tape.labels) for tape in tapes] == [8, 3]
        assert sum(tape.loss() for tape in tapes) == pytest.approx(float((first + second).detach()), rel=1e-12)
        parts = {piece.index: piece.gradient for piece in back_together(tapes)}
    one, two = torch.autograd.grad(first, tensors), torch.autograd.grad(second, others)
    for index, part in parts.items():
        torch.testing.assert_close(part, one[index] + two[index], rtol=1e-10, atol=1e-12)


def test_a_layer_at_a_time_is_in_memory(objectives):
    """What the source counts never exceeds the largest tensor and one segment; a pass leaves nothing behind."""
    objective = objectives("llama")
    weights, space = objective.parameters.weights, objective.parameters
    graph = trace_logits(objective, next(objective.batches(0)).plain())
    sizes = [8 * int(n) for n in space.sizes]
    segments = stretches(graph, sizes).segments
    bytes_of = [sum(sizes[i] for i in set(segment.parameters.values())) for segment in segments]
    assert len(segments) >= 4
    assert max(bytes_of) <= max(sizes)
    assert {i for segment in segments for i in segment.parameters.values()} | {graph.head.weight} == set(
        range(len(sizes))
    )
    weights.peak = weights.live
    with objective.evaluating():
        for batch in objective.batches(0):
            for piece in Tape(
                objective, batch, [lambda i: torch.ones(space.tensors[i].shape, dtype=torch.float64)]
            ).back():
                del piece
    assert weights.live == 0
    assert weights.peak <= max(sizes) + max(bytes_of)
    assert weights.peak < sum(sizes) / 2


@pytest.mark.parametrize("residual", [False, True])
def test_curvatures_are_those_of_the_products(objectives, residual):
    """vᵀ∇²v of every tensor, with and without products, of two vectors; gradients alone are the same."""
    objective = objectives("gpt-neo")
    generator = torch.Generator().manual_seed(5)
    shapes = [p.tensor.shape for p in objective.parameters.parameters]
    v = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    vectors = [lambda i: v[i], lambda i: v[i] if i < 2 else None]
    with objective.evaluating():
        tape = Tape(objective, next(objective.batches(0)), vectors)
        products = {p.index: p for p in tape.back(residual=residual)}
        curvatures = {p.index: p for p in tape.back(residual=residual, wanted="curvatures")}
        gradients = {p.index: p.gradient for p in tape.back(wanted="gradients")}
    assert products.keys() == curvatures.keys() == gradients.keys() == set(range(len(v)))
    for index, piece in products.items():
        expected = [float((piece.products[k][0] * piece.products[k][1]).sum()) if k in piece.products else 0.0
                    for k in range(2)]  # fmt: skip
        assert (1 in piece.products) == (index < 2)
        assert curvatures[index].products == {}
        assert curvatures[index].curvatures == pytest.approx(expected, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(curvatures[index].gradient, piece.gradient, rtol=0, atol=0)
        torch.testing.assert_close(gradients[index], piece.gradient, rtol=0, atol=0)


class Allocated(TorchDispatchMode):
    """Bytes of the storages that operations make and somebody holds, as a peak above what there was."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.gone, storage.nbytes()).atexit = False
        return out

    def gone(self, size):
        self.now -= size


def test_a_tied_table_is_held_three_times_at_most(tmp_path):
    """Its values, its gradient and a vector, or in their place the sum of two gradients; no product of its size."""
    folder = write("gpt-neo", tmp_path, vocab_size=32_000, hidden_size=256)
    objective = streamed(folder, torch.float32)
    size = 4 * int(max(objective.parameters.sizes))
    with objective.evaluating():
        Tape(objective, next(objective.batches(0)))  # traces the graph
    for way in ("gauss-newton", "hutchinson"):
        sampler = sampler_for(objective, Way(way))
        sampler.prepare(0)
        one = GroupPass(objective, 0, GradientSketch(objective.parameters, 0))
        with Allocated() as allocated:
            sampler.sample(one, 1, 0)
        assert 2.5 * size < allocated.peak < 3.5 * size, (way, allocated.peak / size)


def test_theta_is_what_is_stored_displaced_or_not(folders, objectives):
    objective = objectives("gpt-2")
    resident = Objective(load_model(folders["gpt-2"], dtype=torch.float64, streamed=False).model, IDS)
    one, other = objective.parameters, resident.parameters
    assert np.array_equal(one.norms_squared(), other.norms_squared())
    direction = [torch.full(t.shape, 0.01, dtype=torch.float64) for t in other.tensors]
    before = objective.loss()
    with objective.displaced(direction, 0.5), resident.displaced(direction, 0.5):
        assert one.checksum() == other.checksum()
        assert one.fingerprint() == other.fingerprint()
        assert objective.loss() == pytest.approx(resident.loss(), rel=1e-12)
        assert objective.loss() != pytest.approx(before, rel=1e-6)
    assert objective.loss() == before
    assert one.checksum() == other.checksum()


def test_what_needs_all_of_theta_is_refused_in_a_line(folders):
    with already_tried():
        objective = streamed(folders["gpt-2"])
    for call in (
        objective.gradient,
        lambda: HessianOperator(objective),
        lambda: Langevin(objective, temperature=1.0, learning_rate=0.1, steps=1),
        lambda: Live(objective.model, list(IDS), temperature=1e-3),
    ):
        with pytest.raises(InputError, match="needs all of θ in memory") as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="loss_fn needs all of θ"):
        Objective(objective.model, [0], loss_fn=lambda model, group: None)
    objective.model.lm_head.weight.requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        Objective(objective.model, IDS)


def test_a_tensor_of_two_layers_has_the_gradient_and_product_of_both(folders):
    """And what it is added to alongside, whose memory autograd may share, is left as it is."""
    model = AutoModelForCausalLM.from_pretrained(folders["gpt-2"], dtype=torch.float64, attn_implementation="eager")
    first, second = model.transformer.h
    second.mlp.c_fc.weight, second.mlp.c_proj.bias = first.mlp.c_fc.weight, first.mlp.c_proj.bias
    tensors = list(model.eval().parameters())
    generator = torch.Generator().manual_seed(6)
    v = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    logits = model(input_ids=IDS[0], use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, IDS[0][:, 1:].flatten(), reduction="sum")
    gradient = torch.autograd.grad(loss, tensors, create_graph=True)
    curved = torch.autograd.grad(gradient, tensors, v)
    stream_from_memory(model)
    with already_tried():
        objective = Objective(model, IDS)
    with objective.evaluating():
        pieces = {p.index: p for p in Tape(objective, next(objective.batches(0)), [lambda i: v[i]]).back()}
        twice = list(back_together([Tape(objective, next(objective.batches(0))) for _ in range(2)]))
    assert sorted(pieces) == list(range(len(tensors)))
    for index, piece in pieces.items():
        torch.testing.assert_close(piece.gradient, gradient[index].detach(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(piece.products[0][1], curved[index], rtol=1e-8, atol=1e-9)
    assert sorted(p.index for p in twice) == list(range(len(tensors)))
    for piece in twice:
        torch.testing.assert_close(piece.gradient, 2 * gradient[piece.index].detach(), rtol=1e-9, atol=1e-11)
