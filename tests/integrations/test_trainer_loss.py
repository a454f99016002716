"""What the callback says of λ and L in a Trainer's runs, against the steps that were taken and plain torch.

One step of SGD is taken. −Δθ/η = c∇L + λmθ is solved for c and λ by least squares, with ∇L from plain torch on the
batches that the Trainer drew.
"""

import copy
import gc

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.integrations.test_huggingface import add, groups
from villani.integrations.figures import PREFIX

VOCABULARY, LENGTH, RATE, DECAY = 17, 8, 0.05, 0.1
SPECIAL = {"bos_token_id": None, "eos_token_id": None}


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=8, **SPECIAL,
        )
    )  # fmt: skip


def gpt2(dropout=0.0):
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_inner=12, n_positions=8, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=dropout, **SPECIAL,
        )
    )  # fmt: skip


def mixtral():
    """Its loss has a term that balances experts."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=12, max_position_embeddings=8, num_local_experts=2, num_experts_per_tok=1,
            output_router_logits=True, router_aux_loss_coef=0.1, **SPECIAL,
        )
    )  # fmt: skip


class Rows(torch.utils.data.Dataset):
    """Random rows; with `hidden`, so many labels at the start of every other one are not predicted."""

    def __init__(self, hidden=0):
        self.hidden = hidden

    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = torch.randint(0, VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(index))
        labels = ids.clone()
        labels[: self.hidden * (index % 2)] = -100
        return {"input_ids": ids, "labels": labels}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Accelerate collects garbage after every run, which takes longer than the run."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def loss_sum(model, batch):
    """(nats, predicted tokens) of a batch, by plain torch."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss, int((labels != -100).sum())


class Ledger(TrainerCallback):
    """Keeps θ before and after the step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.after = {name: p.detach().clone() for name, p in model.named_parameters()}


def train(folder, make, optimizer=None, kind=Trainer, data=None, options=None, **changes):
    """(figures, c, λ, residual, Trainer) of a run of one step."""
    torch.manual_seed(0)
    model = make()
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": RATE,
            "weight_decay": DECAY, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant",
            "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        } | changes
    )  # fmt: skip
    optimizers = (optimizer(model) if optimizer else None, None)
    trainer = kind(model, arguments, train_dataset=data or Rows(), optimizers=optimizers, **options or {})
    drawn, fetch = [], trainer.get_batch_samples

    def keep(*args, **kwargs):
        found = fetch(*args, **kwargs)
        drawn.extend({name: value.clone() for name, value in batch.items()} for batch in found[0])
        return found

    trainer.get_batch_samples = keep
    add(trainer)
    ledger = Ledger()
    trainer.add_callback(ledger)
    trainer.train()
    assert trainer.get_batch_samples is keep  # as the callback found it
    row = next(r for r in trainer.state.log_history if PREFIX + "psi" in r)
    change = flat(ledger.after[name] - value for name, value in ledger.before.items())
    trainer.trained = copy.deepcopy(model)
    model.load_state_dict(ledger.before, strict=False)
    model.eval()
    sums = [loss_sum(model, batch) for batch in drawn]
    mean = sum(loss for loss, _ in sums) / sum(count for _, count in sums)
    gradient = flat(torch.autograd.grad(mean, [p for _, p in model.named_parameters()]))
    decays = set(trainer.get_decay_parameter_names(model)) if optimizer is None else set(ledger.before)
    theta = flat(value * (name in decays) for name, value in ledger.before.items())
    design = torch.stack([gradient, theta], 1)
    found = torch.linalg.lstsq(design, -change / RATE).solution
    residual = float((design @ found + change / RATE).norm() / (change / RATE).norm())
    figures = {name.removeprefix(PREFIX): value for name, value in row.items()}
    return figures, float(found[0]), float(found[1]), residual, trainer


def doubled(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return 2 * total / num_items_in_batch


@pytest.mark.parametrize(
    ("make", "settings", "factor"),
    [
        (llama, {}, 1.0),
        (llama, {"gradient_accumulation_steps": 3}, 1.0),
        (gpt2, {}, 7 / 8),  # the Trainer counts the first token of each row, which nothing predicts
        (gpt2, {"gradient_accumulation_steps": 2}, 7 / 8),
        (gpt2, {"label_smoothing_factor": 0.0, "max_grad_norm": 1e6}, 7 / 8),
        (llama, {"options": {"compute_loss_func": doubled}}, 2.0),
        (llama, {"max_grad_norm": 0.05}, None),
        (gpt2, {"max_grad_norm": 0.05, "gradient_accumulation_steps": 2}, None),
    ],
)
def test_lambda_is_that_of_the_step_that_was_taken(tmp_path, make, settings, factor):
    figures, c, decay, residual, _ = train(tmp_path, make, **settings)
    assert residual < 1e-4  # float32
    assert decay == pytest.approx(DECAY, rel=1e-3)
    assert c == pytest.approx(factor, rel=1e-3) if factor else c < 0.2
    assert figures["lambda"] == DECAY
    assert figures["lambda_is_of_F"] == float(factor == 1.0)
    assert figures["gradient_factor"] == pytest.approx(c, rel=1e-3)
    assert figures["descended_lambda"] == pytest.approx(decay / c, rel=2e-3)
    assert figures["descended_lambda"] == pytest.approx(DECAY / figures["gradient_factor"], rel=1e-9)


class Overriding(Trainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (llama, {"label_smoothing_factor": 0.1}, "label smoothing of 0.1"),
        (gpt2, {"label_smoothing_factor": 0.1}, "label smoothing of 0.1"),
        (mixtral, {}, "other terms"),
        (llama, {"neftune_noise_alpha": 5.0}, "in training mode"),
        (lambda: gpt2(0.2), {}, "dropout"),
    ],
)
def test_another_loss_than_l_is_told(tmp_path, caplog, make, settings, words):
    figures, _, _, residual, _ = train(tmp_path, make, **settings)
    assert residual > 1e-3  # the step is no c∇L + λmθ
    assert figures["lambda_is_of_F"] == 0.0
    assert "descended_lambda" not in figures
    assert words in caplog.text


def two_rates(model):
    early, late = [*model.parameters()][:3], [*model.parameters()][3:]
    return torch.optim.SGD([{"params": early, "lr": 2 * RATE}, {"params": late}], lr=RATE, weight_decay=DECAY)


def two_decays(model):
    early, late = [*model.parameters()][:3], [*model.parameters()][3:]
    return torch.optim.SGD([{"params": early, "weight_decay": 0.5}, {"params": late}], lr=RATE, weight_decay=DECAY)


def test_groups_of_two_rates_or_two_decays(tmp_path, caplog):
    figures, _, _, residual, _ = train(tmp_path, llama, two_rates)
    assert residual > 1e-2
    assert (figures["lambda_is_of_F"], figures["descended_lambda"]) == (0.0, DECAY)  # fixed points are those of F
    assert "different lr (0.05, 0.1)" in caplog.text
    figures, _, _, residual, _ = train(tmp_path, llama, two_decays)
    assert residual > 1e-3
    assert figures["lambda_is_of_F"] == 0.0
    assert "descended_lambda" not in figures
    assert "2 different rates" in caplog.text


def test_what_is_not_known_is_not_claimed(tmp_path, caplog):
    figures, c, _, _, _ = train(tmp_path, llama, kind=Overriding)
    assert c == pytest.approx(1, rel=1e-3)
    assert figures["lambda_is_of_F"] == 0.0
    assert "compute_loss of the Trainer is overridden" in caplog.text


def test_steps_of_unequal_length_weight_tokens_unequally(tmp_path, caplog):
    """One step descends L of its own batch at λ; L of all steps weights every token alike, a mean of means does not."""
    figures, _, _, _, trainer = train(tmp_path, llama, data=Rows(hidden=5), max_steps=3, per_device_train_batch_size=3)
    assert figures["descended_lambda"] == pytest.approx(DECAY, rel=1e-4)
    told = [row for row in trainer.state.log_history if PREFIX + "psi" in row]
    assert [row[PREFIX + "lambda_is_of_F"] for row in told] == [1.0, 0.0, 0.0]
    assert "batches predict different numbers of tokens" in caplog.text


def own_mean(outputs, labels, num_items_in_batch=None):
    """As many write it: the mean of one batch, whatever the Trainer counts."""
    return nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_a_mean_of_ones_own_is_not_divided_by_the_number_of_accumulated_batches(tmp_path):
    figures, c, decay, residual, _ = train(
        tmp_path, llama, options={"compute_loss_func": own_mean}, gradient_accumulation_steps=3
    )
    assert residual < 1e-4
    assert c == pytest.approx(3, rel=1e-3)
    assert figures["descended_lambda"] == pytest.approx(decay / c, rel=2e-3)
    assert figures["lambda_is_of_F"] == 0.0


@pytest.mark.parametrize(("make", "smoothing"), [(llama, 0.0), (gpt2, 0.0), (llama, 0.1)])
def test_the_trainers_eval_loss_is_l_but_for_what_the_documents_name(tmp_path, make, smoothing):
    ids = groups().flatten(0, 1)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    *_, trainer = train(
        tmp_path, make, options={"eval_dataset": rows}, label_smoothing_factor=smoothing, eval_strategy="steps",
        eval_steps=1, per_device_eval_batch_size=2,
    )  # fmt: skip
    history = trainer.state.log_history
    measured = next(row[PREFIX + "loss"] for row in history if PREFIX + "loss" in row)
    evaluated = next(row["eval_loss"] for row in history if "eval_loss" in row)
    with torch.no_grad():
        logits = trainer.trained.eval()(input_ids=ids).logits[:, :-1].flatten(0, 1)
    plain = float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    uniform = float(-logits.log_softmax(-1).mean())
    assert measured == pytest.approx(plain, rel=1e-5)
    share = (LENGTH - 1) / LENGTH if make is gpt2 else 1.0
    assert evaluated == pytest.approx(share * ((1 - smoothing) * plain + smoothing * uniform), rel=1e-5)
