"""How a model lies over processes, and what is refused in one line."""

import re

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tests.conftest import make_model
from tests.integrations.ranks import cut_network, network, run_ranks
from villani.errors import InputError
from villani.integrations.layout import fsdp_groups, fsdp_states, layout_of, shard_ranks

SIZE, SECONDS = 2, 60.0
QUANTISERS = ["bitsandbytes", "torchao", "torch.ao", "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "optimum.quanto"]


def of_module(kind, module):
    """A subclass that claims to be defined elsewhere."""
    return type(kind.__name__ + "4", (kind,), {"__module__": module})


def refused_line(make):
    try:
        layout_of(make())
    except InputError as error:
        return str(error)
    return "nothing"


def cut_where(rank, size):
    """Where θ is, for each way to wrap a model; what each of the others is refused with."""
    mesh, planes = (init_device_mesh("cpu", (size,)), init_device_mesh("cpu", (1, size), mesh_dim_names=("data", "t")))
    alone = init_device_mesh("cpu", (size, 1), mesh_dim_names=("stage", "parts"))["parts"]
    replicated = nn.parallel.DistributedDataParallel
    inner, cut = network(), cut_network(size)
    compiled = torch.compile(network())
    ways = {
        "cut": (cut, None, cut), "compiled and cut": (torch.compile(cut), None, cut),
        "copies": (replicated(inner), None, inner), "copies of a compiled one": (replicated(compiled), None, None),
        "within copies": (inner, replicated(inner), inner),
        "copies of one": (replicated(inner, process_group=alone.get_group()), None, inner),
    }  # fmt: skip
    places = {}
    for name, (model, replicas, expected) in ways.items():
        layout = layout_of(model, replicas)
        found = layout.model is (compiled._orig_mod if expected is None else expected)
        places[name] = (found, layout.sharded, layout.processes.rank, layout.processes.size)
    groups = [sorted(p._module_info.param_name for p in g.fsdp_params) for g in fsdp_groups(cut)]
    counted = (len(fsdp_states(cut)), groups, shard_ranks(cut), shard_ranks(inner))

    def tensor_parallel():
        model = make_model("llama")
        for layer in model.model.layers:
            parallelize_module(layer.mlp, planes["t"], {"gate_proj": ColwiseParallel()})
        return model

    def two_meshes():
        model = network()
        fully_shard(model[0], mesh=mesh)
        fully_shard(model[2], mesh=alone)
        return model

    def gathered_as_float8():
        model = cut_network(size)
        fsdp_groups(model)[0].fsdp_params[0]._sharded_local_tensor.fsdp_pre_all_gather = lambda mesh: None
        return model

    refused = {
        "tensor": tensor_parallel,
        "both": lambda: fully_shard(tensor_parallel(), mesh=planes["data"]),
        "pipeline": lambda: fully_shard(network(), mesh=alone),
        "meshes": two_meshes,
        "float8": gathered_as_float8,
        "part": lambda: nn.Sequential(replicated(network())),
        "version": lambda: FullyShardedDataParallel(network(), device_id=torch.device("cpu")),
    }
    return places, counted, {name: refused_line(make) for name, make in refused.items()}


def test_where_the_weights_of_a_run_are_and_what_is_refused_in_every_process(tmp_path):
    words = {
        "tensor": "is a DTensor that fully_shard did not make", "both": "was a DTensor before fully_shard",
        "pipeline": "1 of 2 processes", "meshes": "2 different meshes", "float8": "in another form (float8",
        "part": "wrap the whole model", "version": "FSDP1",
    }  # fmt: skip
    for rank, (places, counted, refused) in enumerate(run_ranks(SIZE, cut_where, tmp_path, seconds=SECONDS)):
        assert places == {
            "cut": (True, True, rank, 2), "compiled and cut": (True, True, rank, 2), "copies": (True, False, rank, 2),
            "copies of a compiled one": (True, False, rank, 2), "within copies": (True, False, rank, 2),
            "copies of one": (True, False, 0, 1),
        }  # fmt: skip
        assert counted == (4, [["bias", "weight"]] * 2, [0, 1], None)  # the whole and tanh have none of their own
        assert set(refused) == set(words)
        for name, line in refused.items():
            assert re.search(re.escape(words[name]), line), (name, line)
            assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "wrap", [lambda m: m, torch.compile, nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))]
)
def test_a_model_in_one_process_is_itself_and_needs_no_process_group(wrap):
    model = network()
    layout = layout_of(wrap(model))
    assert layout.model is model
    assert not layout.sharded
    assert not layout.processes.several
    assert (fsdp_states(model), fsdp_groups(model), shard_ranks(model)) == ([], [], None)


def test_what_is_no_module_is_left_to_the_objective():
    assert layout_of("gpt2").model == "gpt2"


def with_module(module):
    return nn.Sequential(nn.Linear(2, 2), of_module(nn.Linear, module)(2, 2))


def with_parameter(module):
    model = nn.Linear(2, 2)
    model.weight = of_module(nn.Parameter, module)(torch.zeros(2, 2))
    return model


@pytest.mark.parametrize("make", [with_module, with_parameter])
@pytest.mark.parametrize("name", QUANTISERS)
def test_modules_and_weights_of_quantisers_are_refused_and_namesakes_are_not(make, name):
    for module in (name, f"{name}.nn.modules"):
        with pytest.raises(InputError, match=f"weights are quantised.*is a {module}|is a (Linear|Parameter)4") as told:
            layout_of(make(module))
        assert "\n" not in str(told.value)
    for module in (f"{name}fish.nn", f"my.{name}"):
        model = make(module)
        assert layout_of(model).model is model


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_stored_as_codes_are_refused(dtype):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(torch.zeros(2, 2).to(dtype), requires_grad=False)
    for wrapped in (model, torch.compile(model), nn.DataParallel(model)):
        with pytest.raises(InputError, match=rf"weights are quantised \(.*0\.weight is {dtype}\)"):
            layout_of(wrapped)


def quantised_dynamically():
    return torch.ao.quantization.quantize_dynamic(make_model("llama").float(), {nn.Linear})


def quantised_by_name():
    model = make_model("llama")
    model.is_quantized = True
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [quantised_dynamically, quantised_by_name])
def test_quantised_models_are_refused_in_a_line(make):
    with pytest.raises(InputError, match="weights are quantised") as error:
        layout_of(make())
    assert len(str(error.value).splitlines()) == 1


def deepspeed_weights():
    model = nn.Linear(2, 2)
    model.bias.ds_id = 0
    return model


def parallel_over(size, name):
    model = nn.Linear(2, 2)
    setattr(model, name, size)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (deepspeed_weights, "weights are DeepSpeed's"),
        (lambda: of_module(nn.Linear, "deepspeed.runtime.engine")(2, 2), "weights are DeepSpeed's"),
        (lambda: of_module(nn.Linear, "megatron.core.models")(2, 2), "a model of Megatron"),
        (lambda: parallel_over(2, "tp_size"), "tensor parallel over 2 processes"),
        (lambda: parallel_over(4, "_tp_size"), "tensor parallel over 4 processes"),
    ],
)
def test_other_ways_to_lie_are_refused_in_a_line(make, words):
    with pytest.raises(InputError, match=words) as told:
        layout_of(make())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["tp_size", "_tp_size"])
def test_parallel_over_one_process_is_not_parallel(name):
    model = parallel_over(1, name)
    assert layout_of(model).model is model
