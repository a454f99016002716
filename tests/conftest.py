"""Small float64 models, a pool of awkward groups, and dense oracles for them."""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from tests.traces import Sharing
from villani.cli import main
from villani.inputs.models import load_model

torch.set_num_threads(1)  # small matrices: threads cost more than they bring, and two test workers share two cores
VOCABULARY, BLOCK = 11, 6

pytest_plugins = ["tests.records"]


def attention_without_cast(self, query, key, value, attention_mask=None):
    """GPT-Neo's attention without its cast of q and k to float32, which no float64 oracle survives."""
    weights = query @ key.transpose(-1, -2)
    length = query.shape[-2]
    weights = weights.masked_fill(~self.bias[:, :, :length, :length], float("-inf"))
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.softmax(weights, dim=-1)
    return weights @ value, weights


def _neo() -> nn.Module:
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=2,
        intermediate_size=12, window_size=3, max_position_embeddings=8, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


def _gpt2(layers: int = 1) -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=layers, n_head=2, n_inner=12, n_positions=8, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=12, max_position_embeddings=8, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"gpt_neo": _neo, "gpt2": _gpt2, "llama": _llama}


def make_model(architecture: str, scale: float = 0.3) -> nn.Module:
    """A float64 model in train mode, with weights so large that curvature is not all Gauss–Newton."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ARCHITECTURES[architecture]().double()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            for p in model.parameters():
                p.add_(scale * torch.randn_like(p))
    return model.train()


@pytest.fixture(autouse=True)
def float64_throughout(monkeypatch):
    """Lift the float32 casts of GPT-Neo, Llama and Qwen2, which no float64 oracle survives; float32 stays."""
    neo, softmax = GPTNeoSelfAttention._attn, nn.functional.softmax

    def attention(self, query, key, value, attention_mask=None):
        lifted = attention_without_cast if query.dtype == torch.float64 else neo
        return lifted(self, query, key, value, attention_mask)

    def rms_norm(self, original, x):
        if x.dtype != torch.float64:
            return original(self, x)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def softmax_without_cast(x, dim=None, dtype=None, **rest):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **rest)

    monkeypatch.setattr(GPTNeoSelfAttention, "_attn", attention)
    for kind in (LlamaRMSNorm, Qwen2RMSNorm):
        monkeypatch.setattr(kind, "forward", partialmethod(rms_norm, kind.forward))
    monkeypatch.setattr(nn.functional, "softmax", softmax_without_cast)


SHARING = Sharing()


@pytest.fixture(scope="session", autouse=True)
def shared_traces():
    """What is the same architecture is traced once for all tests."""
    with SHARING.through_session():
        yield


@pytest.fixture(autouse=True)
def traces_of_this_test(monkeypatch, float64_throughout):
    """None are shared once traced code is patched; overridden where tracing itself is tested."""
    SHARING.begin(monkeypatch)
    yield
    SHARING.end()


def pytest_collection_finish():
    """What is imported and collected by now stays to the end: the garbage collector need not walk it again.

    Traced graphs are many objects: at Python's own thresholds 7 % of the time of tests went into walking them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(params=list(ARCHITECTURES))
def model(request) -> nn.Module:
    return make_model(request.param)


def make_pool(count: int = 8, blocks: int = 2) -> list[dict[str, torch.Tensor]]:
    """Groups as users have them: unequal token counts, one padded, one with −100 labels in the middle."""
    generator = torch.Generator().manual_seed(2)
    pool = []
    for index in range(count):
        ids = torch.randint(0, VOCABULARY, (blocks, BLOCK), generator=generator)
        group = {"input_ids": ids}
        if index == 1:  # padding on the right
            mask = torch.ones_like(ids)
            mask[0, 3:] = 0
            group["attention_mask"] = mask
        if index == 2:  # labels that nobody asks for
            labels = ids.clone()
            labels[:, 2:4] = -100
            group["labels"] = labels
        if index == 3:  # one block fewer
            group["input_ids"] = ids[:1]
        pool.append(group)
    return pool


@dataclass
class Dense:
    """The loss sum of one group, its gradient (d,), Hessian (d, d) and Gauss–Newton matrix (d, d), by brute force."""

    tokens: int
    loss: float
    gradient: np.ndarray
    hessian: np.ndarray | None = None
    gauss_newton: np.ndarray | None = None


def dense(model: nn.Module, group: dict[str, torch.Tensor], *, second: bool = False) -> Dense:
    """An oracle that shares no code with the package: functional calls, full Jacobian and Hessian."""
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    ids = group["input_ids"]
    mask = group.get("attention_mask", torch.ones_like(ids))
    labels = group.get("labels", ids.masked_fill(mask == 0, -100))[:, 1:]
    wanted = labels != -100

    def logits(flat):
        pieces = flat.split([s.numel() for s in shapes])
        state = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        arguments = {"attention_mask": mask} if "attention_mask" in group else {}
        out = functional_call(model, state, (ids,), {"use_cache": False, **arguments}).logits
        return out[:, :-1][wanted]

    def loss(flat):
        z = logits(flat)
        return -torch.log_softmax(z, -1).gather(1, labels[wanted][:, None]).sum()

    theta.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
    first = (int(wanted.sum()), float(loss(theta).detach()), gradient.detach().numpy())
    if not second:
        return Dense(*first)
    key = tuple(t.detach().numpy().tobytes() for t in (theta, ids, mask, labels, gradient)) + first[:2]
    if key not in MATRICES:
        if len(MATRICES) == MOST_MATRICES:
            del MATRICES[next(iter(MATRICES))]
        MATRICES[key] = _matrices(logits, theta, gradient)
    return Dense(*first, *(matrix.copy() for matrix in MATRICES[key]))


MATRICES: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}  # by what no two losses share; the oldest first
MOST_MATRICES = 16  # pairs, of 8 to 22 megabytes each


def _matrices(logits: Callable, theta: torch.Tensor, gradient: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(d, d) Hessian and Gauss–Newton matrix of a loss sum."""
    (hessian,) = torch.autograd.grad(gradient, theta, torch.eye(len(theta), dtype=theta.dtype), is_grads_batched=True)
    jacobian = torch.autograd.functional.jacobian(logits, theta, vectorize=True)  # (n, V, d)
    p = torch.softmax(logits(theta), -1).detach()
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("nkd,nkl,nle->de", jacobian, covariance, jacobian)
    return hessian.numpy(), gauss_newton.numpy()


def flat_parameters(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


@pytest.fixture
def villani(monkeypatch, capsys):
    """Run a command in this process; gives (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["villani", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out = capsys.readouterr()
        return stopped.value.code, out.out, out.err

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small model as a local folder."""
    folder = tmp_path_factory.mktemp("models") / "small"
    load_model("builtin:tiny?layers=1&width=8&context=32").model.save_pretrained(folder)
    return folder
