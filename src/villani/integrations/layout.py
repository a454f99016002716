"""How a model's weights lie over the processes of a run, and what of that cannot be measured."""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn

from villani.errors import InputError
from villani.integrations.processes import Processes
from villani.integrations.untouched import is_sharded, uncompiled

_QUANTISED = ("bitsandbytes", "torchao", "torch.ao", "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "optimum.quanto")
_CODES = (
    torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where θ is.

    Attributes:
        model: the module to measure: within torch.compile and replicas.
        processes: that hold it together, or copies of it; this one alone where there is no wrapper.
        sharded: whether each has a part of θ only.
    """

    model: nn.Module
    processes: Processes = field(default_factory=Processes)
    sharded: bool = False


def layout_of(model: Any, replicas: Any = None) -> Layout:
    """How a model is laid out; makes the group of processes, so that each of them asks at the same point of the run.

    Args:
        model: as the run trains it.
        replicas: the DistributedDataParallel that it is within, if it is not that itself.

    Raises:
        InputError: quantised weights, tensor or pipeline parallelism, FSDP1 or DeepSpeed.
    """
    if not isinstance(model, nn.Module):
        return Layout(model)  # told by `Objective`
    model = uncompiled(model)
    _check_kind(model)
    _check_quantised(model)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model, replicas = model.module, model
    elif isinstance(model, nn.DataParallel):
        model = model.module
    model = uncompiled(model)
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise InputError("a part of the model is in DistributedDataParallel: wrap the whole model, or none of it")
    sharded = shard_ranks(model)
    if sharded is not None:
        return Layout(model, Processes(sharded), sharded=True)
    if isinstance(replicas, nn.parallel.DistributedDataParallel):
        return Layout(model, Processes(distributed.get_process_group_ranks(replicas.process_group)))
    return Layout(model)


def fsdp_states(model: nn.Module) -> list[Any]:
    """What each call of `fully_shard` keeps, in the order of modules; some have no parameters of their own."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # what was never loaded has wrapped nothing
    modules = [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)] if fsdp else []
    return list({id(state): state for module in modules for state in [module._get_fsdp_state()]}.values())


def fsdp_groups(model: nn.Module) -> list[Any]:
    """The parameters that are gathered and reduced together, in the order of modules."""
    return [group for state in fsdp_states(model) for group in state._fsdp_param_groups]


def shard_ranks(model: nn.Module) -> list[int] | None:
    """The processes that hold parts of θ; None where each holds all of it.

    Raises:
        InputError: DTensors that are not `fully_shard`'s; processes outside the mesh, or several meshes.
    """
    parts = [(name, p) for name, p in model.named_parameters() if is_sharded(p)]
    groups = fsdp_groups(model)
    if not parts and not groups:
        return None
    for group in groups:
        for p in group.fsdp_params:
            if p.is_dtensor:
                raise InputError(
                    f"parameter {p._param_fqn or p._module_info.param_name} was a DTensor before fully_shard (tensor "
                    "or expert parallel): gradients of its parts are not measured; shard by fully_shard alone"
                )
            if hasattr(p._sharded_local_tensor, "fsdp_pre_all_gather"):
                raise InputError(
                    "fully_shard gathers these weights in another form (float8 or quantised): second derivatives need "
                    "them as they are"
                )
    managed = {id(p.sharded_param) for group in groups for p in group.fsdp_params}
    for name, p in parts:
        if id(p) not in managed:
            raise InputError(
                f"parameter {name} is a DTensor that fully_shard did not make (tensor parallel?): its parts are not "
                "measured; shard by fully_shard alone"
            )
    ours: dict[str, list[int]] = {
        str(ranks): ranks for g in groups for ranks in [sorted(g.mesh_info.mesh.mesh.flatten().tolist())]
    }
    if len(ours) != 1:
        raise InputError(f"weights lie on {len(ours)} different meshes ({', '.join(ours)}): expected one")
    (ranks,) = ours.values()
    if len(ranks) < distributed.get_world_size():
        raise InputError(
            f"weights lie on {len(ranks)} of {distributed.get_world_size()} processes: with pipeline or other model "
            "parallelism over the rest nobody holds θ; shard by fully_shard over all of them"
        )
    return ranks


def _check_kind(model: nn.Module) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # what was never loaded has wrapped nothing
    if fsdp and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        raise InputError("weights are in FullyShardedDataParallel (FSDP1): shard by fully_shard (fsdp_version 2)")
    module = type(model).__module__.split(".")[0]
    if module == "deepspeed" or any(hasattr(p, "ds_id") for p in model.parameters()):
        raise InputError("weights are DeepSpeed's: gradients of its parts are not measured; shard by fully_shard")
    if module == "megatron":
        raise InputError("a model of Megatron is parallel in tensors and stages: shard by fully_shard alone")
    size = getattr(model, "_tp_size", None) or getattr(model, "tp_size", None)
    if isinstance(size, int) and size > 1:
        raise InputError(f"tensor parallel over {size} processes: its parts are not measured; shard by fully_shard")


def _check_quantised(model: nn.Module) -> None:
    if getattr(model, "is_quantized", False) is True:
        raise _quantised(f"{type(model).__name__} was loaded so")
    for name, module in model.named_modules():
        if _of_quantiser(module):
            raise _quantised(f"{name or 'the model'} is a {type(module).__module__}.{type(module).__name__}")
    for name, p in model.named_parameters():
        if _of_quantiser(p) or _of_quantiser(p.data):
            raise _quantised(f"{name} is a {type(p if _of_quantiser(p) else p.data).__name__}")
        if p.is_quantized or p.dtype in _CODES:
            raise _quantised(f"{name} is {p.dtype}")


def _of_quantiser(value: Any) -> bool:
    module = type(value).__module__ + "."
    return any(module.startswith(name + ".") for name in _QUANTISED)


def _quantised(where: str) -> InputError:
    return InputError(f"weights are quantised ({where}): L has no derivatives there; train and measure them whole")
