from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, DistributedType, PartialState
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from tests.adapted import adapt
from tests.integrations.ranks import run_ranks
from villani.dynamics.schedules import ConstantMemory, GuardFollowing
from villani.errors import InputError
from villani.integrations.figures import PREFIX
from villani.integrations.huggingface import VillaniCallback
from villani.objective.objective import Objective

STEPS, VOCABULARY = 4, 17


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = torch.randint(0, VOCABULARY, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def groups():
    return torch.randint(0, VOCABULARY, (3, 2, 8), generator=torch.Generator().manual_seed(99))


def make_trainer(folder, **changes):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_inner=12, n_positions=8, bos_token_id=None,
        eos_token_id=None, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3,
    )  # fmt: skip
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 0.01,
            "gradient_accumulation_steps": 2, "weight_decay": 0.1, "logging_steps": 2, "save_strategy": "no",
            "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3,
        } | changes
    )  # fmt: skip
    return Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Rows())


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def same(left, right):
    return all(torch.equal(p, q) for p, q in zip(left, right, strict=True))


class Every:
    """A clock on which measuring is free, so that every step affords one."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-9
        return self.now


def add(trainer, **settings):
    """A callback that measures after every step: on a clock that moves between steps alone."""
    clock = Every()

    class Tick(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            callback.live.budget.expect(1e-6)  # no trial

        def on_step_begin(self, args, state, control, **kwargs):
            clock.now += 1.0

    callback = VillaniCallback(trainer, groups(), temperature=0.1, clock=clock, **{"verbose": True} | settings)
    trainer.add_callback(callback)
    trainer.add_callback(Tick())
    return callback


def logged(trainer):
    return [row for row in trainer.state.log_history if PREFIX + "psi" in row]


def test_the_bits_are_the_same_and_every_logger_gets_the_figures(tmp_path):
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    watched = make_trainer(tmp_path / "watched")
    callback = add(watched)
    seen = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, dict(logs)))

    watched.add_callback(Logger())
    watched.train()
    assert same(weights(plain), weights(watched))
    rows = logged(watched)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))  # once a step, not once a batch
    assert sum(PREFIX + "psi" in logs for _, logs in seen) == STEPS
    losses = [[(r["step"], r["loss"]) for r in t.state.log_history if "loss" in r] for t in (plain, watched)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS // 2
    last = rows[-1]
    assert last[PREFIX + "loss"] == pytest.approx(Objective(watched.model, groups()).loss(), rel=1e-9)
    assert last[PREFIX + "decayed_norm_squared"] == pytest.approx(
        sum(
            float(p.detach().double().square().sum()) for p in watched.model.parameters() if p.dim() > 1
        )  # no biases, no norms
    )
    assert last[PREFIX + "lambda"] == 0.1
    assert last[PREFIX + "lambda_is_of_F"] == 0.0
    assert rows[0][PREFIX + "learning_rate"] == pytest.approx(0.01 * (1 - 1 / STEPS))
    end = [row for row in watched.state.log_history if PREFIX + "overhead" in row][-1]
    assert end[PREFIX + "measurements"] == STEPS
    assert PREFIX + "psi" not in end
    assert 0 < end[PREFIX + "overhead"] <= callback.live.budget.overhead * 1.01 <= 0.03


class Closing(TrainerCallback):
    """A logger as the Trainer's own: before other callbacks, and closed when training ends."""

    def __init__(self):
        self.rows, self.closed = [], False

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert not self.closed, "a second run would be opened"
        self.rows.append((state.global_step, dict(logs)))

    def on_train_end(self, args, state, control, **kwargs):
        self.closed = True


@pytest.mark.parametrize("stop_at", [None, 2])
def test_loggers_get_eight_figures_where_asked_and_the_account_before_they_close(tmp_path, stop_at):
    trainer = make_trainer(tmp_path)
    logger = Closing()
    trainer.callback_handler.callbacks.insert(1, logger)
    add(trainer, every=3, at_start=True, at_end=True, verbose=False)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == stop_at

    trainer.add_callback(Stop())
    trainer.train()
    own = [(step, row) for step, row in logger.rows if PREFIX + "psi" in row]
    assert [step for step, _ in own] == ([0, 3, 4] if stop_at is None else [0, 2])
    for _, row in own:
        names = {name for name in row if name.startswith(PREFIX)}
        assert len(names) == 8
        assert {PREFIX + "psi", PREFIX + "psi_sem", PREFIX + "hessian_trace_sem"} <= names
    last = make_trainer(tmp_path / "again", max_steps=stop_at or STEPS)
    add(last, every=1)
    last.train()
    if stop_at is None:  # the learning rate's schedule is of max_steps
        assert logged(last)[-1][PREFIX + "psi"] == own[-1][1][PREFIX + "psi"]


def test_of_an_adapter_the_figures_are_those_of_what_is_trained(tmp_path):
    trainers = []
    for name in ("plain", "watched"):
        trainer = make_trainer(tmp_path / name, max_steps=2)
        adapt(trainer.model, "transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_fc")
        if name == "watched":
            callback = add(trainer)
        trainer.train()
        trainers.append(trainer)
    assert same(weights(trainers[0]), weights(trainers[1]))
    last = logged(trainers[1])[-1]
    moving = [p.detach().double() for p in trainers[1].model.parameters() if p.requires_grad]
    assert len(moving) == 4
    assert last[PREFIX + "decayed_norm_squared"] == pytest.approx(sum(float(p.square().sum()) for p in moving))
    assert last[PREFIX + "loss"] == pytest.approx(Objective(trainers[1].model, groups()).loss(), rel=1e-9)
    assert callback.live.budget.overhead > 0


def test_under_mixed_precision_figures_are_in_full_precision(tmp_path):
    trainers = []
    for name in ("plain", "watched"):
        trainers.append(make_trainer(tmp_path / name, bf16=True, max_steps=2))
        if name == "watched":
            add(trainers[1])
        trainers[-1].train()
    assert same(weights(trainers[0]), weights(trainers[1]))
    bare = make_trainer(tmp_path / "bare").model  # its forward is not wrapped in autocast
    bare.load_state_dict(trainers[1].model.state_dict())
    found = logged(trainers[1])[-1][PREFIX + "loss"]
    assert found == pytest.approx(Objective(bare, groups()).loss(), rel=1e-9)  # bfloat16 would be off by 10⁻³


def test_a_resumed_run_ends_with_the_same_bits_its_schedule_too(tmp_path):
    def make():
        trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
        guard = GuardFollowing(lambda step: {"a": 0.03 * step}, every=1, cap=1.0, smoothing=0.5)
        return trainer, add(trainer, schedule=guard)

    def lasting(trainer):
        return [{k: v for k, v in row.items() if "seconds" not in k and "overhead" not in k and "measurem" not in k}
                for row in logged(trainer)]  # fmt: skip

    (whole, _), (again, callback) = make(), make()
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(whole), weights(again))
    assert [row["step"] for row in logged(again)] == list(range(1, STEPS + 1))
    assert lasting(whole) == lasting(again)
    decays = [row[PREFIX + "optimizer_weight_decay"] for row in logged(again)]
    averages = [0.03, 0.045, 0.0675, 0.09375]
    assert decays == pytest.approx([a**0.5 for a in averages])
    assert callback.live.schedule.steps == STEPS


def test_what_cannot_be_measured_is_told_before_training(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(InputError, match="outside the model's vocabulary"):
        VillaniCallback(trainer, groups() + VOCABULARY, temperature=0.1)
    trainer = make_trainer(tmp_path, weight_decay=0.0)
    add(trainer, schedule=ConstantMemory(cap=1.0))
    with pytest.raises(InputError, match="no group"):
        trainer.train()


@contextmanager
def fsdp_of_accelerate():
    """accelerate's own FSDP of version 2, which it gives on GPUs alone, on the CPU."""
    plain = AcceleratorState.__init__

    def sharded(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["GPT2Block"]
        )
        self._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AcceleratorState, "__init__", sharded)
        yield


def trained_together(folder, kind, rank, size):
    AcceleratorState._reset_state(reset_partial_state=True)  # of this process's tests, before the fork
    ends = []
    with fsdp_of_accelerate() if kind == "fsdp" else nullcontext():
        for name in ("plain", "watched"):
            trainer = make_trainer(folder / f"{name}-{rank}", ddp_backend="gloo", max_steps=2)
            if name == "watched":
                callback = add(trainer)
                with pytest.raises(InputError, match="2 processes: a decay schedule"):
                    add(trainer, schedule=ConstantMemory(cap=1.0))
            trainer.train()
            ends.append([p.full_tensor() if kind == "fsdp" else p for p in weights(trainer)])
    assert type(trainer.model_wrapped).__name__ == (
        "FSDPGPT2LMHeadModel" if kind == "fsdp" else "DistributedDataParallel"
    )
    assert callback.live.processes.size == size
    whole = make_trainer(folder / f"whole-{rank}").model
    with torch.no_grad():
        for p, value in zip(whole.parameters(), ends[1], strict=True):
            p.copy_(value)
    loss = Objective(whole, groups()).loss()
    return same(*ends), [p.tolist() for p in ends[0]], logged(trainer), callback.live.measured, loss


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_measure_together_and_keep_their_bits(kind, tmp_path):
    (first, theta, rows, _, loss), (second, other, none, measured, _) = run_ranks(
        2, partial(trained_together, tmp_path, kind), tmp_path
    )
    assert first
    assert second
    assert theta == other
    assert measured == 2
    assert not none  # process 0 alone logs
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1][PREFIX + "loss"] == pytest.approx(loss, rel=1e-6)
    assert rows[-1][PREFIX + "lambda_is_of_F"] == 0.0


def test_parallelism_that_is_not_of_data_is_refused(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "parallelism_config", SimpleNamespace(tp_size=2))
    with pytest.raises(InputError, match="tp_size=2"):
        VillaniCallback(trainer, groups(), temperature=0.1)
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    monkeypatch.setattr(trainer.accelerator.state, "fsdp_plugin", SimpleNamespace(fsdp_version=1), raising=False)
    with pytest.raises(InputError, match="set fsdp_version 2"):
        VillaniCallback(trainer, groups(), temperature=0.1)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    with pytest.raises(InputError, match="DeepSpeed"):
        VillaniCallback(trainer, groups(), temperature=0.1)
