"""Batches against plain `transformers` code: its own loss for the same batch, and the same text without padding."""

import inspect

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.conftest import BLOCK, VOCABULARY, make_model
from tests.products import hessian_vector_product
from villani.curvature.blocks import BlockTrace
from villani.curvature.operators import Curvature
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.graph import trace_loss
from villani.objective.objective import Objective

V, T = 23, 12
COMMON = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 16}  # fmt: skip
MODELS = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "GPTNeo": {"hidden_size": 16, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2,
               "window_size": 3, "max_position_embeddings": 16},
    "Llama": {k: v for k, v in WIDE.items() if k != "head_dim"},
    "Qwen3": WIDE,
    "Gemma3": WIDE | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "Mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2},
    "OPT": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "word_embed_proj_dim": 16, "max_position_embeddings": 16},
    "Bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Rwkv": {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    "Bart": {"d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 24, "decoder_attention_heads": 2,
             "max_position_embeddings": 16},
}  # fmt: skip
NAMED = {"GPT2": ("GPT2Config", "GPT2LMHeadModel"), "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}


def make(name, dtype=torch.float32, attention="eager"):
    config, kind = NAMED.get(name, (f"{name}Config", f"{name}ForCausalLM"))
    config = getattr(transformers, config)(**COMMON, **MODELS[name])
    if name not in ("Mamba", "Rwkv"):
        config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype).eval()


def positioned(model):
    return "position_ids" in inspect.signature(model.forward).parameters


def draw(model, generator, kind):
    """A batch of one kind as a user has it, and the batch that `transformers` is given for it."""
    rows, length = int(torch.randint(1, 4, (), generator=generator)), int(torch.randint(5, T, (), generator=generator))
    ids = torch.randint(1, V, (rows, length), generator=generator)
    if torch.rand((), generator=generator) < 0.5:
        ids[:, 0] = 0  # a token that begins every text
    batch, labels = {"input_ids": ids}, ids.clone()
    if kind in ("left", "right"):
        padding = torch.randint(0, length - 2, (rows, 1), generator=generator)
        place = torch.arange(length)
        real = place >= padding if kind == "left" else place < length - padding
        batch["attention_mask"] = real.long()
        labels[~real] = -100
        if kind == "left":
            labels[place == padding] = -100  # the first real token has no past
    elif kind == "packed":
        cut = int(torch.randint(1, length, (), generator=generator))
        places = torch.cat([torch.arange(cut), torch.arange(length - cut)])
        batch["position_ids"] = places.expand(rows, -1).clone()
        labels[:, cut] = -100
    reference = batch | {"labels": labels}
    if torch.rand((), generator=generator) < 0.5:  # labels of the user's own
        labels = ids.clone()  # the first token after padding, and that of a packed document, included
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
        if kind in ("left", "right"):
            labels[batch["attention_mask"] == 0] = -100
        labels[0, -1] = labels[0, length // 2] = 3
        batch = batch | {"labels": labels}
        reference = dict(batch)
    if kind == "left" and positioned(model):  # as `generate` has them
        reference["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return batch, reference


def transformers_loss(model, references):
    """Token-weighted mean of the model's own losses, and its gradient."""
    tokens = [int((r["labels"][:, 1:] != -100).sum()) for r in references]
    losses = [model(**r, use_cache=False).loss for r in references]
    loss = sum(n * value for n, value in zip(tokens, losses, strict=True)) / sum(tokens)
    gradient = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return float(loss.detach()), [
        torch.zeros_like(p) if g is None else g for g, p in zip(gradient, model.parameters(), strict=True)
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["GPT2", "GPTNeo", "Llama", "Qwen3", "Gemma3", "Mamba"])
def test_the_loss_of_any_batch_is_that_of_transformers(name, attention):
    if name in ("Mamba", "GPTNeo") and attention == "sdpa":
        pytest.skip("it has one attention, or none")
    model = make(name, attention=attention)
    generator = torch.Generator().manual_seed(len(name))
    kinds = ["plain", "left", "right"] + ["packed"] * positioned(model)
    pairs = [draw(model, generator, kind) for kind in kinds for _ in range(4)]
    batches, references = map(list, zip(*pairs, strict=True))
    loss, gradient = transformers_loss(model, references)
    for micro in (1, 512):
        objective = Objective(model, batches, micro_tokens=micro)
        assert objective.loss() == pytest.approx(loss, abs=1e-6)
        for ours, theirs in zip(objective.gradient(), gradient, strict=True):
            assert torch.allclose(ours, theirs.double(), atol=1e-5)
    for index, reference in enumerate(references):
        assert objective.loss(index) == pytest.approx(transformers_loss(model, [reference])[0], abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(MODELS))
def test_padding_on_either_side_is_as_if_it_were_not_there(name, dtype):
    """No labels: 5 of 6 real tokens are predicted. Alone or beside a longer text; positions, states and windows too."""
    model = make(name, dtype)
    text = torch.tensor([[4, 9, 2, 7, 7, 1]])
    other = torch.tensor([[3, 5, 8, 6, 2, 9, 10, 11, 4, 1]])
    pads = torch.zeros((1, 4), dtype=torch.long)
    mask = torch.tensor([[0] * 4 + [1] * 6])
    plain = Objective(model, [text])
    both = Objective(model, [text, other])
    tolerance = 1e-9 if dtype == torch.float64 and name != "GPTNeo" else 1e-5  # which rounds to float32 inside
    for ids, real in ((torch.cat([pads, text], dim=1), mask), (torch.cat([text, pads], dim=1), mask.flip(1))):
        for kind in (torch.int64, torch.bool, torch.float32, torch.int32)[: 4 if dtype == torch.float64 else 1]:
            padded = Objective(model, [{"input_ids": ids, "attention_mask": real.to(kind)}])
            assert padded.groups[0].tokens == 5
            assert padded.loss() == pytest.approx(plain.loss(), abs=1e-6)
        for ours, theirs in zip(padded.gradient(), plain.gradient(), strict=True):
            assert torch.allclose(ours, theirs, atol=tolerance)
        beside = {"input_ids": torch.cat([ids, other]), "attention_mask": torch.cat([real, torch.ones_like(real)])}
        assert Objective(model, [beside]).loss() == pytest.approx(both.loss(), abs=1e-6)


def test_a_row_of_padding_alone_counts_for_nothing():
    model = make("Gemma3", torch.float64)
    ids = torch.tensor([[4, 9, 2, 7, 7, 1], [0] * 6])
    padded = Objective(model, [{"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [0] * 6])}])
    assert padded.loss() == pytest.approx(Objective(model, [ids[:1]]).loss(), abs=1e-12)
    assert all(bool(torch.isfinite(g).all()) for g in padded.gradient())


def test_labels_in_a_row_of_padding_alone_count_as_they_do_in_transformers():
    model = make("GPT2")
    group = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.tensor([[1] * 6, [0] * 6])}
    expected = model(**group).loss
    assert Objective(model, [group]).loss() == pytest.approx(float(expected.detach()), abs=1e-6)


@pytest.mark.parametrize("name", ["GPT2", "GPTNeo", "Llama", "Qwen3", "Gemma3"])
def test_packed_documents_are_as_if_they_were_apart(name):
    model = make(name, torch.float64)
    ids = torch.randint(1, V, (2, 9), generator=torch.Generator().manual_seed(3))
    places = torch.cat([torch.arange(4), torch.arange(5)])
    apart = Objective(model, [ids[:, :4], ids[:, 4:]])
    for given in (places, places[None], places.expand(2, -1), places.expand(2, -1).int()):
        packed = Objective(model, [{"input_ids": ids, "position_ids": given}])
        assert packed.groups[0].tokens == 2 * (3 + 4)
        assert packed.loss() == pytest.approx(apart.loss(), abs=1e-7)
    vector = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(0))
              for p in packed.parameters.tensors]  # fmt: skip
    theirs = hessian_vector_product(apart, vector)
    tolerance = 1e-6 if name == "GPTNeo" else 1e-9
    for method in ("reverse-over-reverse", "forward-over-reverse"):
        for a, b in zip(hessian_vector_product(packed, vector, method=method), theirs, strict=True):
            assert torch.allclose(a, b, atol=tolerance if method[0] == "r" else 1e-4)  # casts to float32 meet jets
    product = Curvature(packed)(torch.cat([v.reshape(-1) for v in vector]))
    assert torch.allclose(product, torch.cat([t.reshape(-1) for t in theirs]), atol=tolerance)
    if name == "Llama":  # a trace takes a second
        with packed.evaluating():
            traced = trace_loss(packed, packed.groups[0]).run(packed.parameters.tensors)
        assert float(traced.detach()) / 14 == pytest.approx(apart.loss(), abs=1e-6)


def awkward(kind):
    """A batch that keeps its mask or its positions, and what `transformers` is given for it."""
    ids = torch.randint(1, VOCABULARY, (2, BLOCK), generator=torch.Generator().manual_seed(5))
    if kind == "packed":
        positions = torch.tensor([0, 1, 2, 0, 1, 2]).expand(2, -1)
        return {"input_ids": ids, "position_ids": positions}, ids.masked_fill(positions == 0, -100)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, -100)  # the first real token is predicted from padding, which must stay
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, labels


@pytest.mark.parametrize("kind", ["packed", "left"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_way_to_the_trace_takes_the_same_batch(architecture, kind):
    """Against the dense Hessian of the model's own loss."""
    model = make_model(architecture).eval()
    batch, labels = awkward(kind)
    objective = Objective(model, [batch])
    own = dict(batch)
    if kind == "left":
        own["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    tensors = list(model.parameters())
    loss = model(**own | {"labels": labels}, use_cache=False).loss
    assert objective.loss() == pytest.approx(float(loss.detach()), abs=1e-6)  # which is taken in float32
    gradient = torch.autograd.grad(loss, tensors, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = torch.autograd.grad(flat, tensors, torch.eye(len(flat), dtype=flat.dtype), is_grads_batched=True)
    hessian = torch.cat([r.reshape(len(flat), -1) for r in rows], dim=1).detach()
    tokens = objective.groups[0].tokens
    sampler = BlockTrace(objective)  # to the last digit by test_taylor; here, that nothing is lost on the way
    sampled = [sampler.sample(objective.groups[0], 0, (0, i)).traces.sum() / tokens for i in range(30)]
    assert abs(np.mean(sampled) - float(hessian.trace())) < 3 * np.std(sampled) / np.sqrt(30)
    vector = [torch.randn(t.shape, dtype=t.dtype, generator=torch.Generator().manual_seed(1)) for t in tensors]
    expected = hessian @ torch.cat([v.reshape(-1) for v in vector])
    for method in ("reverse-over-reverse", "forward-over-reverse"):
        found = torch.cat([p.reshape(-1) for p in hessian_vector_product(objective, vector, method=method)])
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    found = Curvature(objective)(torch.cat([v.reshape(-1) for v in vector]))
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_predictions_from_padding_that_are_nan_are_told(monkeypatch):
    """Eager attention in float64: the least float64 is −∞ in the softmax's float32, so that a masked row is NaN."""
    monkeypatch.undo()  # of what keeps the models of other tests in float64
    model = make("Llama", torch.float64)
    ids, mask = torch.tensor([[0, 0, 4, 9, 2, 7]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    group = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    assert torch.isnan(model(**group).loss)
    with pytest.raises(InputError, match="set labels to −100 in padding and at the first token after it"):
        Objective(model, [group]).loss()


def test_other_inputs_go_to_the_forward():
    model = make("GPT2")
    ids = torch.randint(1, V, (2, 7), generator=torch.Generator().manual_seed(3))
    types = torch.randint(1, V, (2, 7), generator=torch.Generator().manual_seed(4))
    expected = model(input_ids=ids, token_type_ids=types, labels=ids).loss
    objective = Objective(model, [{"input_ids": ids, "token_type_ids": types, "attention_mask": None}])
    assert objective.loss() == pytest.approx(float(expected.detach()), abs=1e-6)


IDS = torch.tensor([[4, 9, 2, 7, 7, 1], [3, 5, 8, 6, 2, 9]])
ONES = torch.ones_like(IDS)


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("Llama", {"attention_masks": ONES}, "'attention_masks': it takes input_ids, labels, attention_mask, "),
        ("Llama", {"label": IDS}, "'label'"),
        ("Llama", {"token_type_ids": ONES}, "'token_type_ids'"),
        ("Llama", {"inputs_embeds": torch.zeros(2, 6, 16)}, "'inputs_embeds'"),
        ("Mamba", {"position_ids": IDS}, "'position_ids'"),
        ("GPT2", {"labels": IDS + V}, "labels run from 24 to 32, outside the model's vocabulary of 23"),
        ("GPT2", {"labels": IDS.masked_fill(IDS == 9, -1)}, "labels run from -1"),
        ("GPT2", {"labels": IDS[:, 1:]}, r"labels is \(2, 5\): expected a tensor of the ids' shape \(2, 6\)"),
        ("GPT2", {"labels": IDS.int()}, "labels are torch.int32: expected int64"),
        ("GPT2", {"labels": IDS.tolist()}, "labels is a list"),
        ("GPT2", {"labels": torch.full_like(IDS, -100)}, "nothing to predict"),
        ("GPT2", {"attention_mask": ONES[:, 1:]}, r"attention_mask is \(2, 5\)"),
        ("GPT2", {"attention_mask": torch.ones(2, 1, 6, 6)}, r"attention_mask is \(2, 1, 6, 6\)"),
        ("GPT2", {"attention_mask": 2 * ONES}, "other values than 0"),
        ("GPT2", {"attention_mask": 0 * ONES}, "nothing to predict"),
        ("GPT2", {"attention_mask": ONES.scatter(1, ONES * 2, 0)}, "zeros between ones.*give position_ids"),
        ("GPT2", {"position_ids": IDS.cfloat()}, "position_ids are torch.complex64: expected integers"),
        ("GPT2", {"input_ids": IDS.to_sparse()}, "input_ids is a tensor that is torch.sparse_coo: expected"),
        ("GPT2", {"attention_mask": IDS.to_sparse()}, "attention_mask is a tensor that is torch.sparse_coo"),
        ("GPT2", {"labels": IDS.to("meta")}, "labels is a tensor that is on the meta device"),
        ("GPT2", {"position_ids": IDS.float()}, "position_ids are torch.float32 from 1.0: expected integers"),
        ("GPT2", {"position_ids": IDS - 5}, "position_ids are torch.int64 from -4"),
        ("GPT2", {"position_ids": IDS + 10}, "blocks of 20 tokens are longer than the model's context of 16"),
        ("GPT2", {"position_ids": IDS.expand(3, 2, 6)}, r"position_ids is \(3, 2, 6\)"),
        ("GPT2", {"token_type_ids": IDS[:1]}, "token_type_ids is .*expected a tensor with 2 rows"),
        ("GPT2", {"input_ids": None, "labels": IDS}, r"no input_ids among its keys \(labels\)"),
        ("GPT2", {"input_ids": IDS.tolist()}, "got list"),
        ("GPT2", {"input_ids": IDS.int()}, "got .*int32"),
        ("GPT2", {"input_ids": IDS[:0]}, "are empty"),
        ("GPT2", {"input_ids": IDS[:, :0]}, "are empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_told_in_one_line(name, group, message):
    with pytest.raises(InputError, match=f"group 0: .*{message}") as caught:
        Objective(make(name), [{"input_ids": IDS, **group}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["GPT2", "Llama", "Gemma3"])
def test_positions_stand_still_in_padding_on_the_right_of_a_row_that_keeps_its_left(name):
    """A masked row of attention sees the keys of both: what is predicted from padding depends on their positions."""
    model = make(name)
    mask = torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]])
    group = {"input_ids": IDS, "attention_mask": mask, "labels": IDS.masked_fill(mask == 0, -100)}
    places = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]])  # cumsum(mask) − 1, or those of the model itself
    loss, gradient = transformers_loss(model, [group | {"position_ids": places}])
    objective = Objective(model, [group])
    assert objective.loss() == pytest.approx(loss, abs=1e-6)
    assert all(torch.allclose(a, b.double(), atol=1e-5) for a, b in zip(objective.gradient(), gradient, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("more", [0, 1])  # with the padding token within the text, and without
@pytest.mark.parametrize("name", ["OPT", "Roberta", "XLMRoberta"])
def test_models_that_count_positions_by_themselves_do_so_in_padding_too(name, more, dtype):
    """What is predicted from padding is what transformers predicts there for the same batch.

    Two tokens of it put RoBERTa's first real token at 2, where it is by its own count, too.
    """
    model, text = counting(name).to(dtype), IDS + more
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    ids = text.masked_fill(mask == 0, 1)
    labels = torch.cat([text[:, :3], ids[:, 3:]], 1)  # the first two asked of the row come from padding
    group = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    loss, gradient = transformers_loss(model, [group])
    objective = Objective(model, [group])
    assert objective.loss() == pytest.approx(loss, abs=1e-6)
    assert all(torch.allclose(a, b.double(), atol=1e-5) for a, b in zip(objective.gradient(), gradient, strict=True))


def counting(name):
    if name == "OPT":
        return make("OPT")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": V,
        "pad_token_id": 1, "max_position_embeddings": 16, "is_decoder": True,
    }  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    for module in model.modules():  # which would leave rows out of the gradient
        if type(module) is nn.Embedding:
            module.padding_idx = None
    return model


@pytest.mark.parametrize("group", [None, "text", [[1, 2], [3]], np.zeros((2, 3), dtype=np.int64), 7])
def test_groups_of_no_tensors_are_told(group):
    with pytest.raises(InputError, match="group 0: expected int64 token ids"):
        Objective(make("GPT2"), [group])


@pytest.mark.parametrize("groups", [None, {"input_ids": IDS}, "text", 3, torch.tensor(3)])
def test_what_is_no_sequence_of_groups_is_told(groups):
    with pytest.raises(InputError, match=r"groups is a \w+: expected a tensor \(G, B, T\)"):
        Objective(make("GPT2"), groups)


class Bigrams(nn.Module):
    """Logits from the token before; its forward takes ids and nothing else, and returns what it is told to."""

    def __init__(self, output):
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, V * V).view(V, V).sin())
        self.output = output

    def forward(self, input_ids):
        return self.output(self.table[input_ids])


def test_a_forward_that_takes_no_cache_and_returns_a_mapping():
    model = Bigrams(lambda logits: {"logits": logits})
    expected = nn.functional.cross_entropy(model.table[IDS[:, :-1]].flatten(0, 1), IDS[:, 1:].flatten())
    assert Objective(model, [IDS]).loss() == pytest.approx(float(expected.detach()), abs=1e-6)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda z: (z,), "returns no logits but a tuple: give loss_fn"),
        (lambda z: z, "returns no logits but a Tensor"),
        (lambda z: {"scores": z}, "returns no logits but a dict"),
        (lambda z: {"logits": z[:, 1:]}, r"returns logits \(1, 5, 23\) for ids \(1, 6\)"),
        (lambda z: {"logits": z[..., 0]}, r"returns logits \(1, 6\)"),
        (lambda z: {"logits": z[..., :5]}, "fails on a batch: Target 9 is out of bounds"),
        (lambda z: {"logits": z @ z.double()}, "fails on a batch: "),
    ],
)
def test_forwards_that_give_no_logits_are_told(output, message):
    with pytest.raises(InputError, match=f"Bigrams {message}") as caught:
        Objective(Bigrams(output), [IDS]).loss()
    assert "\n" not in str(caught.value)


def test_tuples_are_refused_and_loaded_models_give_none(tmp_path):
    model = make("GPT2")
    model.config.return_dict = False
    with pytest.raises(InputError, match="return_dict=False"):
        Objective(model, [IDS])
    model.save_pretrained(tmp_path)
    assert Objective(load_model(str(tmp_path)).model, [IDS]).loss() > 0


def test_a_context_of_minus_one_is_no_limit():
    """XLNet's; what its attention sees is another matter."""
    config = transformers.XLNetConfig(**COMMON, d_model=16, n_layer=1, n_head=2, d_inner=24)
    assert config.max_position_embeddings == -1
    model = Bigrams(lambda logits: {"logits": logits})
    model.config = config
    assert Objective(model, [IDS]).loss() > 0


def test_a_model_that_mixes_precisions_in_float64_is_told():
    config = transformers.MixtralConfig(**COMMON, **{k: v for k, v in WIDE.items() if k != "head_dim"},
                                        num_local_experts=2)  # fmt: skip
    model = transformers.MixtralForCausalLM(config).double()
    with pytest.raises(InputError, match=r"MixtralForCausalLM fails on a batch: .*try float32"):
        Objective(model, [IDS]).loss()


def test_inference_mode_is_refused_and_batches_made_in_it_are_not():
    model = make("GPT2")
    with torch.inference_mode():
        inside, made = IDS + 0, make("GPT2")
        with pytest.raises(InputError, match="inference_mode is on"):
            Objective(model, [IDS])
    with pytest.raises(InputError, match=r"made in torch\.inference_mode"):
        Objective(made, [IDS])
    objective = Objective(model, [{"input_ids": inside}])
    assert sum(float(g.square().sum()) for g in objective.gradient()) > 0
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode is on"):
        objective.gradient()


def test_names_are_found_behind_wrappers():
    model = make("Llama")

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, *arguments, **options):
            return self.module(*arguments, **options)

    places = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = Objective(model, [{"input_ids": IDS, "position_ids": places}]).loss()
    for wrapped in (Wrapper(), torch.compile(model, backend="eager")):
        with pytest.raises(InputError, match="'attention_masks'"):
            Objective(wrapped, [{"input_ids": IDS, "attention_masks": ONES}])
    assert Objective(Wrapper(), [{"input_ids": IDS, "position_ids": places}]).loss() == expected
