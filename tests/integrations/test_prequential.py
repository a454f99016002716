"""A certificate of a Trainer's run: against a plain loop and the formulas, and what has none."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from villani.errors import InputError
from villani.integrations.figures import PREFIX
from villani.integrations.huggingface import VillaniCallback
from villani.theory.pac_bayes import bernstein, bernstein_rates, linear, linear_rates

VOCABULARY, BLOCKS, BLOCK = 17, 22, 8
IDS = torch.randint(0, VOCABULARY, (BLOCKS, BLOCK), generator=torch.Generator().manual_seed(5))


class Blocks(torch.utils.data.Dataset):
    """Blocks of tokens, some of which are not predicted."""

    def __init__(self, **more):
        self.more = more

    def __len__(self):
        return BLOCKS

    def __getitem__(self, index):
        labels = IDS[index].clone()
        labels[index % 5 + 4 :] = -100
        return {"input_ids": IDS[index], "labels": labels} | {k: v[index] for k, v in self.more.items()}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        data = Blocks()
        return iter([data[index] for index in range(BLOCKS)])


def network(dropout=0.0):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=BLOCK, bos_token_id=None,
            eos_token_id=None, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        )
    )  # fmt: skip


def make(folder, model=None, data=None, kind=Trainer, **changes):
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder), "num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 0.05,
            "gradient_accumulation_steps": 2, "weight_decay": 0.1, "logging_steps": 3, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3, "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
        } | changes
    )  # fmt: skip
    return kind(model or network(), arguments, train_dataset=data or Blocks())


def run(trainer, resume=None, **settings):
    callback = VillaniCallback(trainer, certificate="prequential", **settings)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return callback.scores


def scores_by_hand():
    """ln p of the predicted tokens before the step on their blocks, from plain torch."""
    model, data = network().train(), Blocks()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": [p for p in model.parameters() if p.dim() < 2]}]
    stepper = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.0)
    scores = []
    for first in range(0, BLOCKS, 4):
        rows = [data[i] for i in range(first, min(first + 4, BLOCKS))]
        ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
        targets = labels[:, 1:]
        logs = torch.log_softmax(model(input_ids=ids).logits[:, :-1], -1)[targets >= 0]
        logs = logs.gather(1, targets[targets >= 0][:, None])[:, 0]
        scores.append(logs.detach())
        stepper.zero_grad()
        # this model's loss is divided by all labels, that of a block's first token included
        (-logs.sum() / (labels >= 0).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepper.step()
    return torch.cat(scores).double().numpy()


def test_the_certificate_is_what_a_plain_loop_and_the_formulas_give(tmp_path):
    trainer = make(tmp_path)
    scores = run(trainer, delta=0.1, candidates=3)
    logs, found = scores_by_hand(), scores.certificate
    assert scores.refusal == ""
    assert (found.tokens, found.vocabulary, found.steps) == (len(logs), VOCABULARY, 6)
    wanted = []
    for alpha in (0.01, 0.1):
        losses, level = -np.log((1 - alpha) * np.exp(logs) + alpha / VOCABULARY), 0.1 / 3 / 2
        highest, span, m = math.log(VOCABULARY / alpha), math.log1p((1 - alpha) * VOCABULARY / alpha), len(logs)
        values = [
            linear(losses.mean(), m, 0.0, level / 2 / 32, b, span=span, lowest=highest - span, tokens=True).value
            for b in linear_rates(m, span)
        ]
        for c in (share / 10 * math.log(VOCABULARY) for share in range(2, 10)):
            values += [
                bernstein(
                    losses.mean(), ((losses - c) ** 2).mean(), m, 0.0, level / 2 / 256, t, reach=highest - c,
                    highest=highest,
                ).value for t in bernstein_rates(highest - c)
            ]  # fmt: skip
        wanted.append((min(values), losses.mean(), alpha))
    value, empirical, alpha = min(wanted)
    assert (found.value, found.empirical, found.alpha) == (
        pytest.approx(value, rel=1e-5),
        pytest.approx(empirical, rel=1e-5),
        alpha,
    )
    assert found.excess == pytest.approx(value - empirical, rel=1e-4)
    assert json.loads((tmp_path / "certificate.json").read_text())["value"] == found.value
    (row,) = [row for row in trainer.state.log_history if PREFIX + "certificate" in row]
    assert row[PREFIX + "certificate"] == found.value
    assert row[PREFIX + "certificate_tokens"] == len(logs)


def test_weights_keep_their_bits_with_dropout_and_beside_measurements(tmp_path):
    plain = make(tmp_path / "a", network(0.3))
    plain.train()
    for number, more in enumerate(({}, {"groups": IDS[:6].view(3, 2, BLOCK), "temperature": 0.1})):
        watched = make(tmp_path / f"b{number}", network(0.3))
        scores = run(watched, **more)
        assert scores.certificate
        for p, q in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_resumed_run_has_the_same_certificate(tmp_path, mixed):
    whole = run(make(tmp_path / "a", bf16=mixed)).certificate
    first = make(tmp_path / "b", save_strategy="steps", save_steps=2, bf16=mixed)
    run(first)
    again = run(make(tmp_path / "b", bf16=mixed), str(tmp_path / "b" / "checkpoint-4")).certificate
    assert again == whole
    with pytest.raises(InputError, match="ignore_data_skip"):
        run(make(tmp_path / "b", ignore_data_skip=True), str(tmp_path / "b" / "checkpoint-4"))
    bare = make(tmp_path / "c", save_strategy="steps", save_steps=2)
    bare.train()
    with pytest.raises(InputError, match="4 steps before this resume were not scored"):
        run(make(tmp_path / "c"), str(tmp_path / "c" / "checkpoint-4"))


def test_an_iterable_data_set_is_scored_once(tmp_path):
    sized, stream = run(make(tmp_path / "a", max_steps=5)), run(make(tmp_path / "b", data=Stream(), max_steps=5))
    assert stream.certificate == sized.certificate
    longer = run(make(tmp_path / "c", data=Stream(), max_steps=8))
    assert longer.certificate is None
    assert "a second epoch began" in longer.refusal
    assert not (tmp_path / "c" / "certificate.json").exists()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"train_sampling_strategy": "random"}, "train_sampling_strategy='random'"),
        ({"train_sampling_strategy": "group_by_length"}, "text's order"),
        ({"num_train_epochs": 2}, "num_train_epochs=2"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"data": Stream(), "max_steps": 6, "dataloader_num_workers": 2}, "dataloader_num_workers=2"),
    ],
)
def test_settings_without_a_certificate_are_refused_at_once(tmp_path, changes, fragment):
    with pytest.raises(InputError, match=fragment):
        VillaniCallback(make(tmp_path, **changes), certificate="prequential")


def test_arguments_that_do_not_go_together(tmp_path):
    trainer = make(tmp_path)
    for words, fragment in (
        ({"certificate": "path"}, "certificate='path'"), ({}, "groups and temperature go together"),
        ({"certificate": "prequential", "temperature": 0.1}, "go together"),
        ({"certificate": "prequential", "delta": 0.0}, "delta=0"),
        ({"certificate": "prequential", "candidates": 0}, "candidates=0"),
        ({"certificate": "prequential", "probes": 2}, "go together"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=fragment):
            VillaniCallback(trainer, **words)


class Shuffled(Trainer):
    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=2, shuffle=True)


class Ordered(Trainer):
    def get_train_dataloader(self):
        order = [[i, i + 1] for i in range(0, BLOCKS, 2)]
        return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=order)


def test_more_than_an_epoch_and_loaders_out_of_order_are_refused_when_training_begins(tmp_path):
    with pytest.raises(InputError, match="max_steps=9 is more than one epoch"):
        run(make(tmp_path, max_steps=9))
    with pytest.raises(InputError, match="RandomSampler"):
        run(make(tmp_path, kind=Shuffled))
    with pytest.raises(InputError, match="a list, whose order is not known"):
        run(make(tmp_path, kind=Ordered))
    trainer = make(tmp_path)
    run(trainer)
    with pytest.raises(InputError, match="trained before"):
        trainer.train()


def test_a_model_that_sees_what_it_predicts_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=BLOCK, is_decoder=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="not causal"):
        run(make(tmp_path, BertLMHeadModel(config)))


class Twice(Trainer):
    """Trains on a batch and then scores it."""

    def training_step(self, model, inputs, *rest):
        super().training_step(model, inputs, *rest)
        self.optimizer.step()
        return super().training_step(model, inputs, *rest)


class Fused(Trainer):
    """Its model gives a loss alone."""

    def compute_loss(self, model, inputs, *rest, **more):
        self.model.forward, own = (lambda **named: (own(**named).loss,)), self.model.forward
        try:
            return model(**inputs)[0]
        finally:
            self.model.forward = own


class Stops(Trainer):
    def training_step(self, *rest):
        self.control.should_training_stop = self.state.global_step == 3
        return super().training_step(*rest)


ONES = torch.ones(BLOCKS, BLOCK, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"kind": Twice}, "2 forward passes over a batch"),
        ({"kind": Stops}, "stopped at step"),
        ({"kind": Fused}, "gives no logits"),
        ({"data": Blocks(labels=(IDS + 1) % VOCABULARY)}, "are not the next tokens"),
        ({"data": Blocks(labels=-100 * ONES)}, "no token was scored"),
        ({"data": Blocks(position_ids=torch.arange(BLOCK).expand(BLOCKS, BLOCK))}, "position_ids given to the model"),
        ({"data": Blocks(attention_mask=ONES - (torch.arange(BLOCK) < 2).long())}, "rows are padded on the left"),
    ],
)
def test_what_only_the_run_tells_ends_without_a_certificate(tmp_path, changes, fragment):
    scores = run(make(tmp_path, **changes))
    assert scores.certificate is None
    assert fragment in scores.refusal
    assert not (tmp_path / "certificate.json").exists()


def test_padding_on_the_right_changes_nothing(tmp_path):
    mask = (torch.arange(BLOCK) < torch.arange(BLOCKS)[:, None] % 5 + 4).long()
    padded = run(make(tmp_path / "a", data=Blocks(attention_mask=mask))).certificate
    assert padded.value == pytest.approx(run(make(tmp_path / "b")).certificate.value, rel=1e-5)
