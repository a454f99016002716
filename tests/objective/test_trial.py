"""One row tells whether a forward pass leaves θ alone, is no matter of chance, and sees nothing that it predicts."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    ReformerConfig,
    ReformerModelWithLMHead,
    RobertaConfig,
    RobertaForCausalLM,
    RoCBertConfig,
    RoCBertForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

import villani.criteria.audit
from tests.conftest import make_model, make_pool
from tests.test_cli import refused
from villani.criteria.audit import audit
from villani.curvature.operators import Curvature
from villani.dynamics.certificate import ChainPlan
from villani.dynamics.chain import Moving, run_chain
from villani.errors import InputError
from villani.integrations.huggingface import VillaniCallback
from villani.integrations.live import Live
from villani.measurement.measure import measure
from villani.objective.objective import Objective
from villani.theory.pac_bayes import bernstein, held_out, linear

V, T = 11, 6
IDS = torch.randint(3, V, (3, 2, T), generator=torch.Generator().manual_seed(0))
SMALL = {
    "vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 16,
}  # fmt: skip
ENCODERS = {
    "bert": (BertLMHeadModel, BertConfig),
    "roberta": (RobertaForCausalLM, RobertaConfig),
    "roc_bert": (RoCBertForCausalLM, RoCBertConfig),
}


def encoder(kind, *, decoder):
    torch.manual_seed(0)
    model, config = ENCODERS[kind]
    more = {"shape_vocab_size": V, "pronunciation_vocab_size": V} if kind == "roc_bert" else {}
    return model(config(is_decoder=decoder, **SMALL, **more)).eval()


class Mixing(nn.Module):
    """Logits from an average over positions, by weights (T, T) that say who sees whom; no attention, no mask."""

    def __init__(self, seen, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed, self.head = nn.Embedding(V, 8), nn.Linear(8, V)
        self.mix = nn.Parameter(scale * torch.randn(8, 8, generator=generator))
        self.register_buffer("seen", seen / seen.sum(1, keepdim=True).clamp(min=1))

    def forward(self, input_ids, use_cache=False):
        x = self.embed(input_ids)
        return CausalLMOutput(logits=self.head(torch.tanh(x + self.seen @ x @ self.mix)))


def causal(length=T):
    return torch.ones(length, length).tril()


def blocks(size):
    """Positions of a block of this size see each other."""
    places = torch.arange(T) // size
    return ((places[:, None] == places) | (causal() > 0)).float()


def leaks(model, ids=IDS[0]):
    """By brute force, at θ itself: whether any logit moves when any later token is any other one."""
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        for j in range(1, ids.shape[1]):
            for token in range(V):
                other = ids.clone()
                other[:, j] = token
                moved = model(input_ids=other, use_cache=False).logits - logits
                if moved[:, :j].abs().max() > 1e-6:
                    return True
    return False


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_refused_wherever_it_goes_and_a_decoder_is_not(kind):
    model = encoder(kind, decoder=False)
    before = [p.detach().clone() for p in model.parameters()]
    plan = ChainPlan([0.1], 1.0, 1e-3, 1.0, "prior")
    trainer = SimpleNamespace(
        model=model,
        is_fsdp_enabled=False,
        accelerator=SimpleNamespace(state=None),
        is_deepspeed_enabled=False,
        args=SimpleNamespace(world_size=1),
    )
    for work in (
        lambda: measure(Objective(model, IDS)), lambda: audit(Objective(model, IDS)),
        lambda: Curvature(Objective(model, IDS)), lambda: Live(model, IDS, temperature=1.0),
        lambda: VillaniCallback(trainer, IDS, temperature=1.0),
        lambda: run_chain(Moving(model), IDS[0], IDS[0], plan, batch=1, seed=0),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"is not causal.*is_decoder=True") as caught:
            work()
        assert "\n" not in str(caught.value)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    own = Objective(model, list(IDS), loss_fn=lambda m, ids: m(input_ids=ids, labels=ids).loss)
    assert own.loss() == pytest.approx(
        float(torch.stack([model(input_ids=i, labels=i).loss.detach() for i in IDS]).mean())
    )
    decoder = encoder(kind, decoder=True)
    with torch.no_grad():
        truth = [
            float(F.cross_entropy(decoder(input_ids=i).logits[:, :-1].flatten(0, 1), i[:, 1:].flatten())) for i in IDS
        ]
    assert Objective(decoder, IDS).loss() == pytest.approx(sum(truth) / 3)
    assert not leaks(decoder)


@pytest.mark.parametrize("command", ["measure", "audit", "spectrum", "converge", "certify"])
def test_commands_refuse_an_encoder_in_one_line(villani, tmp_path, command):
    config = BertConfig(**SMALL | {"vocab_size": 2048})
    BertLMHeadModel(config).save_pretrained(tmp_path / "model")
    more = ["--prior", "given"] if command == "certify" else []
    words = [command, tmp_path / "model", "--tokenizer", "builtin", "--block", "8", "--run", tmp_path / "run", *more]
    refused(villani(*words), "BertLMHeadModel is not causal", "is_decoder=True")


@pytest.mark.parametrize(("seen", "scale"), [
    (torch.ones(T, T), 1.0), (torch.ones(T, T), 1e-3), (torch.ones(T, T), 0.0),  # an encoder; faint; from zero on
    (torch.ones(T, T).tril(1), 1.0),  # one ahead
    (blocks(2), 1.0), (blocks(3), 1.0), (blocks(5), 1.0),  # within blocks
    (torch.maximum(causal(), (torch.arange(T) < 2).float() * (torch.arange(T)[:, None] < 2).float()), 1.0),  # a prefix
    (torch.maximum(causal(), F.one_hot(torch.tensor(T - 1), T).float() * torch.ones(T, 1)), 1.0),  # the last alone
])  # fmt: skip
def test_any_leak_is_found(seen, scale):
    model = Mixing(seen, scale)
    assert leaks(model) or not scale
    with pytest.raises(InputError, match="is not causal"):
        Objective(model, IDS)


@pytest.mark.parametrize("ids", [
    IDS, IDS[:, :, :2], torch.full((3, 1, T), 4),
    [{"input_ids": IDS[0], "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])}] * 3,
])  # fmt: skip
def test_a_causal_model_is_let_through_whatever_the_rows(ids):
    for architecture in ("gpt2", "llama", "gpt_neo"):
        model = make_model(architecture)
        assert Objective(model, ids).loss() > 0
    assert Objective(Mixing(causal(ids.shape[-1])), ids).loss() > 0 if isinstance(ids, torch.Tensor) else True


def test_a_mixture_of_experts_is_causal_up_to_rounding():
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(
        **SMALL | {"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 50}, num_key_value_heads=1,
        num_local_experts=4, num_experts_per_tok=2,
    ))  # fmt: skip
    ids = torch.randint(0, 50, (3, 1, 16))
    assert not leaks(model, ids[0] % V)
    assert Objective(model, ids).loss() > 0


@pytest.mark.parametrize("kind", ["Bart", "Marian", "Pegasus"])
def test_labels_for_a_loss_that_does_not_shift_them_are_refused(kind):
    """Its own loss of labels moved by one is that of next tokens; read as here, they would be two ahead."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=V, d_model=8, decoder_layers=1, decoder_ffn_dim=12, decoder_attention_heads=2, pad_token_id=0,
        max_position_embeddings=16,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    moved = F.pad(IDS[0][:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        own = float(model(input_ids=IDS[0], labels=moved).loss)
    assert Objective(model, IDS[:1]).loss() == pytest.approx(own, rel=1e-6)
    some = IDS[0].masked_fill(IDS[0] == IDS[0, 0, 1], -100)
    assert Objective(model, [{"input_ids": IDS[0], "labels": some}]).loss() > 0
    with pytest.raises(InputError, match="own loss holds label t against the logits at t, where here"):
        Objective(model, [IDS[1], {"input_ids": IDS[0], "labels": moved}])


def test_labels_of_others_are_read_as_transformers_reads_them():
    model = make_model("llama")
    with torch.no_grad():
        own = float(model(input_ids=IDS[0], labels=IDS[1]).loss)
    assert Objective(model, [{"input_ids": IDS[0], "labels": IDS[1]}]).loss() == pytest.approx(own, rel=1e-6)


def test_one_token_in_all_leaks_nothing():
    model = Mixing(torch.ones(T, T))
    model.embed, model.head = nn.Embedding(1, 8), nn.Linear(8, 1)
    model.get_input_embeddings = lambda: model.embed
    assert Objective(model, torch.zeros(3, 1, T, dtype=torch.long)).loss() == 0


def rwkv():
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=V, hidden_size=8, num_hidden_layers=8, attention_hidden_size=8, context_length=16)
    return RwkvForCausalLM(config).train()


def test_a_model_that_divides_its_weights_in_place_is_refused_and_gets_them_back():
    """In training nothing is divided: what the user trains on afterwards is the same function at the same θ."""
    model = rwkv()
    before, logits = [p.detach().clone() for p in model.parameters()], model(IDS[0]).logits.detach()
    for _ in range(2):
        with pytest.raises(InputError, match=r"writes to its own weights.*rwkv.blocks.6.attention.output.weight"):
            Objective(model, IDS)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(model(IDS[0]).logits.detach(), logits)
    model.eval()
    logits = model(IDS[0]).logits.detach()  # as the message says; θ has moved by the user's own hand
    moved = [p.detach().clone() for p in model.parameters()]
    truth = F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[0][:, 1:].flatten())
    assert Objective(model, IDS).loss(0) == pytest.approx(float(truth), rel=1e-6)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), moved, strict=True))


def test_frozen_weights_that_are_written_to_are_seen():
    model = rwkv()
    for p in model.rwkv.blocks.parameters():
        p.requires_grad_(False)
    with pytest.raises(InputError, match=r"writes to its own weights.*frozen"):
        Objective(model, IDS)


def test_an_embedding_that_rescales_its_rows_is_refused():
    model = Mixing(causal())
    model.embed = nn.Embedding(V, 8, max_norm=1.0)
    with pytest.raises(InputError, match=r"embed has max_norm=1: .* set None"):
        Objective(model, IDS)


class Late(nn.Module):
    """Writes past autograd into its weight, from the n-th call on."""

    def __init__(self, calls):
        super().__init__()
        self.w, self.left = nn.Parameter(torch.ones(3)), calls

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            self.w.data[1] *= 1 + 1e-7
        return (self.w * x).sin().square().sum()


@pytest.mark.parametrize("work", [
    lambda o: measure(o, trace="hutchinson"), lambda o: measure(o, trace="hutchinson", products="finite-differences"),
])  # fmt: skip
def test_weights_written_to_later_are_seen_after_a_measurement(work):
    groups = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    work(Objective(Late(10**6), groups, 0.1, loss_fn=lambda m, x: m(x)))
    with pytest.raises(InputError, match=r"parameter w has changed \(1 in all\)"):
        work(Objective(Late(0), groups, 0.1, loss_fn=lambda m, x: m(x)))


def test_an_audit_that_moved_the_weights_is_no_audit(monkeypatch):
    objective = Objective(Late(10**6), [torch.ones(3)], 0.1, finite=True, loss_fn=lambda m, x: m(x))
    smoothness = villani.criteria.audit.audit_smoothness

    def careless(objective):
        objective.model.w.data[0] += 1
        return smoothness(objective)

    monkeypatch.setattr(villani.criteria.audit, "audit_smoothness", careless)
    with pytest.raises(InputError, match=r"parameter w has changed \(1 in all\)"):
        audit(objective, rays=(), search=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fingerprint_tells_any_change_and_nothing_else(dtype):
    model = make_model("gpt2").to(dtype)
    space = Objective(model, make_pool()).parameters
    prints = [space.fingerprint()]
    weight = model.transformer.wte.weight
    for row, column in ((0, 0), (3, 5), (10, 7)):
        value = float(weight[row, column].detach())
        with torch.no_grad():
            weight[row, column] = torch.nextafter(weight[row, column], torch.tensor(9.0, dtype=dtype))
            prints.append(space.fingerprint())
            weight[row, column] = value
        assert space.fingerprint() == prints[0]
    with torch.no_grad():  # an exchange of two entries leaves every plain sum as it is
        weight[[0, 1]] = weight[[1, 0]]
    prints.append(space.fingerprint())
    assert all(p[0] != prints[0][0] and p[1:] == prints[0][1:] for p in prints[1:])
    assert len({p[0] for p in prints}) == len(prints)


def test_chance_is_refused():
    config = ReformerConfig(
        is_decoder=True, vocab_size=V, hidden_size=16, attention_head_size=8, num_attention_heads=2, num_buckets=4,
        attn_layers=["lsh"], axial_pos_embds=False, max_position_embeddings=64, feed_forward_size=16, num_hashes=1,
        lsh_attn_chunk_length=4, axial_pos_shape=(4, 4),
    )  # fmt: skip
    ids = torch.randint(0, V, (3, 1, 16), generator=torch.Generator().manual_seed(0))
    model = ReformerModelWithLMHead(config)
    assert len({float(model.eval()(ids[0]).logits.detach().sum()) for _ in range(3)}) == 3
    with pytest.raises(InputError, match="is random in eval mode"):
        Objective(model, ids)
    endless = Mixing(causal())
    endless.head.register_forward_pre_hook(lambda _, x: (F.dropout(x[0], 0.1),))  # on in eval mode, too
    with pytest.raises(InputError, match="is random in eval mode"):
        Objective(endless, IDS)


def test_a_trial_leaves_no_trace():
    model = make_model("gpt2").train()
    model.register_buffer("calls", torch.zeros(()))
    model.seen = 0

    def count(module, *_):
        module.calls += 1
        module.seen += 1

    model.register_forward_hook(count)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    Objective(model, make_pool())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before[0], strict=True))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (float(model.calls), model.seen, model.training) == (0, 0, True)
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))


def test_every_bound_on_tokens_names_causality():
    bounds = [
        linear(0.2, 300, 5.0, 0.05, 300.0, tokens=True),
        bernstein(3.0, 8.0, 10**4, 5.0, 0.05, 0.01, reach=10.0, highest=12.0),
        held_out(3.0, 8.0, 10**4, 0.05, reach=10.0, highest=12.0),
    ]
    assert all("causality" in bound.hypotheses for bound in bounds)
    assert "causality" not in linear(0.2, 300, 5.0, 0.05, 300.0).hypotheses
