"""Operations that are taken apart while tracing: each equal to what torch computes in one."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from villani.objective import decomposition
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

aten = torch.ops.aten


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seen(rows, columns):
    """A mask that leaves one query without a key."""
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[:, 0] = True
    mask[1] = False
    return mask


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.37},
    "a mask": {"attn_mask": seen(5, 7)},
    "a mask for each sequence": {"attn_mask": seen(5, 7).expand(2, 1, 5, 7)},
    "scores added to": {"attn_mask": normal(4, 5, 7, seed=3)},
    "scores masked": {"attn_mask": torch.where(seen(5, 7), 0.0, -math.inf).double(), "scale": 2.0},
    "grouped heads": {"enable_gqa": True},
    "grouped, causal": {"enable_gqa": True, "is_causal": True, "scale": 0.5},
    "grouped, masked": {"enable_gqa": True, "attn_mask": seen(5, 7)},
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_torchs(case):
    options = ATTENTION[case]
    heads = 2 if "grouped" in case else 4
    query, key, value = normal(2, 4, 5, 3), normal(2, heads, 7, 3, seed=1), normal(2, heads, 7, 6, seed=2)
    assert torch.allclose(
        decomposition.attention(query, key, value, **options),
        F.scaled_dot_product_attention(query, key, value, **options),
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip


def test_dropout_is_left_as_it_is():
    query = normal(1, 2, 3, 4)
    assert decomposition.attention(query, query, query, dropout_p=0.1) is NotImplemented


X, Y = normal(3, 4, 5), normal(3, 4, 5, seed=1)
OPERATIONS = [
    (aten.repeat_interleave.self_int, (X, 3), {}),
    (aten.repeat_interleave.self_int, (X, 2, -2), {}),
    (aten.stack.default, ([X, Y],), {}),
    (aten.stack.default, ([X, Y], -1), {}),
    (aten.stack.default, ([X, Y], 2), {}),
    (aten.baddbmm.default, (normal(3, 1, 2), X, normal(3, 5, 2, seed=2)), {}),
    (aten.baddbmm.default, (normal(3, 4, 2), X, normal(3, 5, 2, seed=2)), {"beta": 0.3, "alpha": 1.7}),
    (aten.baddbmm.default, (torch.full((3, 4, 2), math.nan).double(), X, normal(3, 5, 2, seed=2)), {"beta": 0}),
    (aten.rsub.Scalar, (X, 2.0), {}),
    (aten.rsub.Scalar, (X, 2.0, 3.0), {}),
    (aten.rsub.Tensor, (X, Y), {"alpha": 0.5}),
    (aten.slice_scatter.default, (X, Y[..., 1:3], 2, 1, 3), {}),
    (aten.slice_scatter.default, (X, Y[:, -2:], 1, -2), {}),
    (aten.slice_scatter.default, (X, Y, 0), {}),
    (aten.slice_scatter.default, (X, Y[..., :3], -1, None, 3), {}),
    (aten.select_scatter.default, (X, Y[:, 1], 1, -2), {}),
    (aten.select_scatter.default, (X, Y[0], 0, 0), {}),
    (aten.einsum.default, ("abc,dbc->dca", [X, Y]), {}),
    (aten.einsum.default, ("abc, abd -> cd", [X, Y]), {}),
    (aten.einsum.default, ("abc,bd->da", [X, Y[0]]), {}),
    (aten.einsum.default, ("a,b->ba", [X[0, 0], Y[0, 0]]), {}),
    (aten.einsum.default, ("abc,abc->acb", [X, Y]), {}),
    (aten.einsum.default, ("ab,ab->", [X[0], Y[0]]), {}),
    (aten.copy.default, (X, Y[:1, :, :1].float()), {}),
    (aten.type_as.default, (X.float(), Y), {}),
    (aten.concat.default, ([X, Y], 1), {}),
    (aten.view_as.default, (X, Y.mT), {}),
    (aten.reshape_as.default, (X.mT, Y), {}),
    (aten.expand_as.default, (X[:1], Y), {}),
    (aten.outer.default, (X[0, 0], Y[0, 1]), {}),
    (aten.ger.default, (X[0, 0], Y[0, 1]), {}),
    (aten.movedim.int, (X, 0, -1), {}),
    (aten.movedim.intlist, (X, [-1, 0], [0, 1]), {}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_operations_are_torchs(number):
    target, arguments, options = OPERATIONS[number]
    found, expected = decomposition.TABLE[target](*arguments, **options), target(*arguments, **options)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("equation", ["ab,bc,cd->ad", "aa,ab->b", "...a,ab->...b", "ab,bc"])
def test_other_sums_of_products_stay_whole(equation):
    assert decomposition.einsum(equation, [X[0, :4, :4]] * (equation.count(",") + 1)) is NotImplemented


def test_every_operation_of_the_table_is_tried():
    tried = {target for target, *_ in OPERATIONS} | {aten.scaled_dot_product_attention.default}
    assert set(decomposition.TABLE) == tried | set(decomposition.OTHER_NAMES)


def test_what_is_taken_apart_is_gone_from_the_graph():
    model = nn.Linear(4, 12, bias=False)

    def loss(m, x):
        query, key, value = m(x).view(2, 3, 3, 4).unbind(2)
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).square().sum()

    objective = Objective(model, [normal(2, 3, 4).float()], loss_fn=loss)
    graph = trace_loss(objective, objective.groups[0])
    targets = {node.target for node in graph.nodes}
    assert targets.isdisjoint(decomposition.TABLE)
    assert aten.softmax.int in targets
    dropped = Objective(
        model, objective.groups,
        loss_fn=lambda m, x: F.scaled_dot_product_attention(*[m(x).view(2, 3, 3, 4)] * 3, dropout_p=0.5).sum(),
    )  # fmt: skip
    graph = trace_loss(dropped, dropped.groups[0])
    assert aten.scaled_dot_product_attention.default in {node.target for node in graph.nodes}


def documented():
    """What torch's own documentation calls another name of an operation: (alias, name) in ATen."""
    pairs = set()
    for space in (torch, torch.Tensor, torch.special, torch.linalg):
        for alias in dir(space):
            text = getattr(vars(space).get(alias), "__doc__", None)
            text = text if isinstance(text, str) else ""
            name = re.search(r"Alias (?:for|of) :\w+:`~?(?:torch\.)?(?:\w+\.)?(\w+)`", text)
            known = [n for n in (alias, f"special_{alias}", f"linalg_{alias}") if hasattr(aten, n)] if name else []
            pairs |= {(n, name[1]) for n in known if hasattr(aten, name[1]) and n != name[1]}
    return sorted(pairs)


def test_whatever_torch_calls_an_alias_is_traced_as_what_it_is():
    pairs = documented()
    assert ("multiply", "mul") in pairs
    assert len(pairs) > 15
    for alias, name in pairs:
        for form in {*getattr(aten, alias).overloads()} & {*getattr(aten, name).overloads()}:
            one, other = getattr(getattr(aten, alias), form), getattr(getattr(aten, name), form)
            defaults = [[a.default_value for a in op._schema.arguments] for op in (one, other)]
            assert "out" in form or defaults[0] != defaults[1] or one in decomposition.TABLE, one


U, W = torch.rand(4, 4, generator=torch.Generator().manual_seed(2)), torch.rand(4, 4)
GIVEN = [
    (U,),
    (U, W),
    (U, 0.3),
    ([U, W], 1),
    (U, -1),
    (U, 0, 1),
    (1 + U,),
    (U, W, W + 1),
    (U, [0], [1]),
    (U, 3),
    (2, U),
    ([U, W],),
]


@pytest.mark.parametrize("alias", decomposition.OTHER_NAMES, ids=str)
def test_an_alias_gives_what_the_operation_gives(alias):
    tried = 0
    for given in GIVEN:
        options = {"rounding_mode": "floor"} if "mode" in str(alias) else {}
        try:
            expected = alias(*given, **options)
        except (RuntimeError, IndexError):  # other arguments than it takes
            continue
        tried += 1
        torch.testing.assert_close(decomposition.TABLE[alias](*given, **options), expected, equal_nan=True)
    assert tried


ALIASED = {
    "multiply": (lambda w, x: torch.multiply(w, x), aten.mul.Tensor),
    "concatenate": (lambda w, x: torch.concatenate([w, x], 1), aten.cat.default),
    "divide": (lambda w, x: torch.divide(w, 2 + x * x), aten.div.Tensor),
    "subtract": (lambda w, x: torch.subtract(w, x, alpha=3), aten.sub.Tensor),
    "negative": (lambda w, _: torch.negative(w), aten.neg.default),
    "clip": (lambda w, _: torch.clip(w, -0.3, 0.4), aten.clamp.default),
    "clipped between": (lambda w, x: torch.clip(w, x - 1, x + 1), aten.clamp.Tensor),
    "special softmax": (lambda w, _: torch.special.softmax(w, -1), aten.softmax.int),
    "expit": (lambda w, _: torch.special.expit(w), aten.sigmoid.default),
    "swapaxes": (lambda w, x: w.swapaxes(1, 2) * x.mT, aten.transpose.int),
    "moveaxis": (lambda w, x: w.moveaxis(0, 2) * x.movedim((0, 1), (2, 0)), aten.permute.default),
    "linalg matmul": (lambda w, x: torch.linalg.matmul(w, x.mT), aten.matmul.default),
    "greater": (lambda w, x: torch.where(torch.greater(w, x), w, x * w), aten.gt.Tensor),
    "outer": (lambda w, x: torch.outer(w[0, 0], x[0, 0]), aten.mul.Tensor),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIASED)
def test_an_alias_is_traced_under_the_name_that_rules_know(name):
    function, operation = ALIASED[name]

    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(Y.clone())

    def loss(model, x):
        return function(model.w, x).square().sum()

    objective = Objective(Held(), [X], loss_fn=loss)
    graph = trace_loss(objective, X)
    assert operation in {node.target for node in graph.nodes}
    assert not {node.target for node in graph.nodes} & set(decomposition.TABLE)
    assert graph.run(objective.parameters.tensors).item() == pytest.approx(objective.loss(), rel=1e-12)
