import numpy as np
import torch

from tests.conftest import make_model
from villani.curvature.probes import rademacher
from villani.curvature.sketch import BUCKETS, GradientSketch, buckets_for
from villani.objective.parameters import ParameterSpace
from villani.streams import Purpose, stream


def test_small_gradients_are_kept_whole():
    space = ParameterSpace(make_model("gpt2"))
    sketch = GradientSketch(space, seed=0)
    gradient = [torch.randn_like(t) for t in space.tensors]
    assert not sketch.lossy
    assert torch.equal(sketch(gradient), torch.cat([g.reshape(-1) for g in gradient]))


def test_sketch_is_the_matrix_it_says():
    """Entry i goes to bucket i mod k with one sign, the same for every gradient, across tensor boundaries."""
    space = ParameterSpace(make_model("gpt2"))
    sketch = GradientSketch(space, seed=3, buckets=101)
    signs = np.concatenate(
        [rademacher(n, stream(3, Purpose.SKETCH, t), torch.float64).numpy() for t, n in enumerate(space.sizes)]
    )
    gradient = [torch.randn_like(t) for t in space.tensors]
    flat = torch.cat([g.reshape(-1) for g in gradient]).numpy()
    wanted = np.zeros(101)
    np.add.at(wanted, np.arange(space.size) % 101, signs * flat)
    assert np.allclose(sketch(gradient).numpy(), wanted, atol=1e-12)


def test_inner_products_survive_on_average():
    space = ParameterSpace(make_model("gpt2"))
    a = [torch.randn_like(t) for t in space.tensors]
    b = [x + torch.randn_like(x) for x in a]
    truth = sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
    found = [float(s(a) @ s(b)) for s in (GradientSketch(space, seed, 53) for seed in range(400))]
    assert abs(np.mean(found) - truth) < 4 * np.std(found) / 20
    assert np.std(found) > 0


def test_buckets_are_prime():
    assert all(BUCKETS % n for n in range(2, 512))


def test_sketches_of_many_groups_share_their_memory():
    assert buckets_for(16) == buckets_for(128) == BUCKETS
    size = buckets_for(4096)
    assert size * 8 * 4096 <= 1 << 28
    assert all(size % k for k in range(2, 100))
