"""Products and functions of jets against automatic differentiation; probes that go on as one."""

import pytest
import torch

from villani.curvature.algebra import JetAlgebra
from villani.curvature.jets import Jet, Probed


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", [3, 9])
def test_tangents_through_a_matrix_have_the_covariance_of_its_inputs(length):
    """Of a sequence's T inputs of width D only X Xᵀ enters, by a factor of T columns or of D, whichever are fewer."""
    sweep = JetAlgebra([0], sequences=2)
    x = torch.randn(2 * length, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] = x[0]  # a repeated input makes X Xᵀ singular
    columns = min(length, 5)

    def unit(place):
        def draw(_, shape):
            assert shape == (2, columns, 4)
            signs = torch.zeros(shape, dtype=torch.float64)
            signs[:, place] = 1
            return signs

        return draw

    tangents = [
        sweep.through(x, Probed(torch.zeros(4, 5), [0], unit(place)), torch.Size([2 * length, 4]))[0]
        for place in range(columns)
    ]
    covariance = sum(t[:, None, 0] * t[None, :, 0] for t in tangents)
    apart = torch.block_diag(torch.ones(length, length), torch.ones(length, length))
    assert torch.allclose(covariance * apart, (x @ x.T) * apart, atol=1e-8)


def along(function, curve):
    """The value, d/dε and d²/dε² of a function of curves of ε, at 0."""
    zero = torch.zeros((), dtype=torch.float64)

    def at(e):
        return function(*curve(e))

    slope = torch.func.jacfwd(at)
    return at(zero), slope(zero), torch.func.jacfwd(slope)(zero)


def test_a_product_has_the_cross_term_of_each_probe():
    """(a + εv)(b + εw): 2 vw in the second order, for each probe that moves both."""
    algebra = JetAlgebra([0, 1])
    a = Jet(draw(0, 2, 3), {0: draw(1, 2, 3), 1: draw(2, 2, 3)}, {0: draw(3, 2, 3)})
    b = Jet(draw(4, 3, 2), {0: draw(5, 3, 2)}, {1: draw(6, 3, 2)})
    product = algebra.bilinear(torch.matmul, a, b)
    second_a, second_b = {0: a.second[0], 1: 0.0}, {0: 0.0, 1: b.second[1]}
    for k in (0, 1):

        def curve(e, k=k):
            return (
                a.x + e * a.first[k] + e**2 / 2 * second_a[k], b.x + e * b.first.get(k, 0.0) + e**2 / 2 * second_b[k]
            )  # fmt: skip

        value, slope, bend = along(torch.matmul, curve)
        assert torch.allclose(product.x, value)
        assert torch.allclose(product.first[k], slope)
        assert torch.allclose(product.second[k], bend)
    scaled = algebra.bilinear(torch.mul, a, 3.0)
    assert torch.allclose(scaled.first[1], 3 * a.first[1])
    assert scaled.second.keys() == {0}


def test_classes_add_up_what_their_probes_would_have_apart():
    apart, collapsed = JetAlgebra([0, 1, 2]), JetAlgebra([0, 1, 0])
    x = draw(0, 4)
    first = {k: draw(k + 1, 4) for k in range(3)}
    ours, theirs = (g.elementwise(Jet(x, dict(first)), x.sin(), x.cos(), -x.sin()) for g in (collapsed, apart))
    assert torch.allclose(ours.second[0], theirs.second[0] + theirs.second[2])
    assert torch.allclose(ours.second[1], theirs.second[1])
    _, slope, bend = along(torch.sin, lambda e: (x + e * first[1],))
    assert torch.allclose(theirs.first[1], slope)
    assert torch.allclose(theirs.second[1], bend)


def test_probes_that_were_joined_go_on_as_one():
    algebra = JetAlgebra([0, 0, 0], joins={1: 0, 2: 1})
    a, b, c = draw(0, 3), draw(1, 3), draw(2, 3)
    jet = Jet(a, {0: a, 1: b, 2: c})
    algebra.join(jet)
    assert [algebra.probe(k) for k in range(3)] == [0, 0, 0]
    assert jet.first.keys() == {0}
    assert torch.allclose(jet.first[0], a + b + c)
    later = Jet(a, {2: c})
    algebra.gather(later)
    assert later.first.keys() == {0}
    free = JetAlgebra([0, 0], joins={})
    alone = Jet(a, {0: a, 1: b})
    free.join(alone)
    assert alone.first.keys() == {0, 1}, "what may not be joined stays apart"
