"""Parts of θ against the whole: what belongs to an entry belongs to its place in the whole, whoever holds it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.integrations.ranks import run_ranks
from villani.curvature.probes import rademacher
from villani.curvature.sketch import GradientSketch
from villani.errors import InputError
from villani.integrations.shards import Shard as Part
from villani.integrations.shards import ShardedSpace, squared_norms
from villani.streams import Purpose, stream

SIZE, SEED, BUCKETS = 4, 3, 7


@pytest.mark.parametrize(("shape", "dim", "size"), [((7, 3), 0, 4), ((5, 6, 4), 1, 2), ((2, 3, 8), 2, 4), ((3,), 0, 5)])
def test_signs_and_places_of_parts_are_those_of_the_whole(shape, dim, size):
    tensor = torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)
    signs = rademacher(tensor.numel(), stream(3, Purpose.PROBE, 1), torch.float32).reshape(shape)
    inner = int(np.prod(shape[dim + 1 :]))
    seen, start = [], 0
    for part, cut in zip(tensor.chunk(size, dim), signs.chunk(size, dim), strict=False):
        stop = start + part.shape[dim] * inner
        own = Part(part, start, stop, shape[dim] * inner, True)
        assert own.places(0, part.numel()).tolist() == part.flatten().tolist()
        assert torch.equal(own.signs(tensor.numel(), stream(3, Purpose.PROBE, 1)), cut.flatten())
        seen += part.flatten().tolist()
        start = stop
    assert sorted(seen) == list(range(tensor.numel()))
    long = Part(torch.zeros(0), 3 << 20, (3 << 20) + 5, 1 << 23, True)  # several pieces, most of which are skipped
    first = rademacher(1 << 23, stream(3, Purpose.PROBE, 1), torch.float32)[3 << 20 :][:5]
    assert torch.equal(long.signs(1 << 23, stream(3, Purpose.PROBE, 1)), first)


def network():
    """Rows that four do not divide, columns that they do, fewer entries than processes, and one that stays whole."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3), nn.LayerNorm(3)).double()


def slope(tensor):
    return torch.linspace(-2, 1, tensor.numel(), dtype=torch.float64).view(tensor.shape).exp()


def parts(rank, size):
    """Of each way to cut θ and each tensor: values, places, whether counted, signs and gradients of this part."""
    columns = lambda p: Shard(1) if p.dim() > 1 and p.shape[1] % size == 0 else Shard(0)
    ways = {
        "rows": {"mesh": init_device_mesh("cpu", (size,))},
        "copies": {"mesh": init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copies", "parts"))},
        "columns": {"mesh": init_device_mesh("cpu", (size,)), "shard_placement_fn": columns},
    }
    told = {}
    for name, settings in ways.items():
        model = network()
        fully_shard(model, ignored_params={model[1].weight}, **settings)
        space = ShardedSpace(model, "nanogpt", rank == 0)
        space.check()
        lengths = [shard.tensor.numel() for shard in space.shards]
        places = [shard.places(0, n) for shard, n in zip(space.shards, lengths, strict=True)]
        whole = [slope(p) for p in network().parameters()]
        own = [w.flatten()[at].view(t.shape) for w, at, t in zip(whole, places, space.tensors, strict=True)]
        told[name] = {
            "values": [t.flatten().tolist() for t in space.tensors],
            "places": [at.tolist() for at in places],
            "counted": space.counted.tolist(),
            "signs": [v.flatten().tolist() for v in space.probe(SEED, 6, 1)],
            "sketch": space.sketch(GradientSketch(space, SEED, BUCKETS), own).numpy(),
            "whole": space.sketch(GradientSketch(space, SEED), own).numpy(),
            "norms": space.norms_squared(),
            "kept": [g.flatten().tolist() for g in own]
            == [w.flatten()[at].tolist() for w, at in zip(whole, places, strict=True)],
            "names": [p.name for p in space.parameters],
        }
    table = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (2, 2)), [Shard(0), Shard(1)])
    refused = nn.Module()
    refused.table = nn.Parameter(table)
    try:
        ShardedSpace(refused, "all", rank == 0)
    except InputError as error:
        told["refused"] = str(error)
    copied = nn.Module()
    copied.table = nn.Parameter(
        distribute_tensor(torch.ones(3, 2), init_device_mesh("cpu", (2, 2)), [Replicate(), Replicate()])
    )
    told["copied"] = ShardedSpace(copied, "all", rank == 0).norms_squared().tolist()
    return told


def test_parts_together_are_the_whole_whatever_the_cut(tmp_path):
    results = run_ranks(SIZE, parts, tmp_path, seconds=60.0)
    tensors = list(network().parameters())
    signs = [
        rademacher(t.numel(), stream(SEED, Purpose.PROBE, 6, 1, index), torch.float64)
        for index, t in enumerate(tensors)
    ]
    bucket, sketch, flat = 0, np.zeros(BUCKETS), []
    for index, t in enumerate(tensors):
        random = rademacher(t.numel(), stream(SEED, Purpose.SKETCH, index), torch.float64)
        for sign, entry in zip(random.tolist(), slope(t).flatten().tolist(), strict=True):
            sketch[bucket % BUCKETS] += sign * entry
            flat.append(entry)
            bucket += 1
    for way in ("rows", "copies", "columns"):
        seen = [[] for _ in tensors]
        for result in (r[way] for r in results):
            assert result["names"] == [name for name, _ in network().named_parameters()]
            for t, (whole, sign) in enumerate(zip(tensors, signs, strict=True)):
                at = result["places"][t]
                assert result["values"][t] == whole.flatten()[at].tolist()
                assert result["signs"][t] == sign[at].tolist()
                seen[t] += at if result["counted"][t] else []
        for t, whole in enumerate(tensors):
            assert sorted(seen[t]) == list(range(whole.numel())), (way, t)  # each entry counted once
        lengths = {len(r[way]["places"][t]) for r in results for t in (0, 1)}
        assert len(lengths) > 1, "the cut is uneven"
        total = {name: sum(r[way][name] for r in results) for name in ("sketch", "whole", "norms")}
        assert np.allclose(total["sketch"], sketch, rtol=1e-13)
        assert np.allclose(total["whole"], flat, rtol=1e-15)
        assert np.allclose(total["norms"], [float((t.detach() ** 2).sum()) for t in tensors], rtol=1e-13)
    assert any(0 in [len(at) for at in r["rows"]["places"]] for r in results), "one has nothing of a tensor"
    for result in results:
        assert result["refused"].startswith("parameter table lies as (Shard(dim=0), Shard(dim=1)): expected one Shard")
    assert [r["copied"] for r in results] == [[pytest.approx(6.0, rel=1e-14)], [0.0], [0.0], [0.0]]


@pytest.mark.parametrize("main", [True, False])
def test_what_every_process_has_whole_is_counted_by_the_main_one(main):
    model = nn.Linear(3, 2)
    space = ShardedSpace(model, "all", main)
    assert space.counted.tolist() == [float(main)] * 2
    assert [t.tolist() for t in space.tensors] == [p.tolist() for p in model.parameters()]
    assert space.tensors[0].data_ptr() == model.weight.data_ptr()
    squares = [float((p.detach().double() ** 2).sum()) for p in model.parameters()]
    assert space.norms_squared() == pytest.approx(np.array(squares) * main)


def test_norms_of_float32_are_taken_in_float64():
    big = torch.full((2,), 1e30, dtype=torch.float32)
    assert squared_norms([big, torch.zeros(0)]) == pytest.approx([2 * float(big[0]) ** 2, 0.0])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.to(torch.bfloat16), "parameter weight is torch.bfloat16: curvature needs float32 or float64"),
        (
            lambda m: setattr(m, "bias", nn.Parameter(m.bias.double())),
            "parameter bias is torch.float64 on cpu: use",
        ),
        (lambda m: m.to("meta"), "parameter weight is on the meta device, without values"),
        (lambda m: nn.init.constant_(m.bias, float("nan")), "parameter bias has non-finite entries"),
        (lambda m: nn.init.constant_(m.weight, float("inf")), "parameter weight has non-finite entries"),
    ],
)
def test_a_part_that_cannot_be_measured_is_told_in_a_line(change, line):
    model = nn.Linear(3, 2)
    ShardedSpace(model, "all", True).check()
    change(model)
    with pytest.raises(InputError) as caught:
        ShardedSpace(model, "all", True).check()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
