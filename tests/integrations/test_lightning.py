import json
import warnings
from functools import partial

import pytest
import torch

from tests.conftest import make_model
from tests.integrations.ranks import run_ranks
from villani.dynamics.schedules import ConstantMemory
from villani.errors import InputError
from villani.integrations.figures import PREFIX

pl = pytest.importorskip("lightning.pytorch")
STEPS = 4


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-9
        return self.now


class Task(pl.LightningModule):
    def __init__(self, clock, optimisers=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.model = make_model("gpt2")
        self.clock, self.optimisers = clock, optimisers
        self.automatic_optimization = optimisers == 1
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3

    def on_train_start(self):  # after the callbacks'
        for callback in self.trainer.callbacks:
            if live := getattr(callback, "live", None):
                live.budget.expect(1e-6)  # no trial

    def training_step(self, batch, index):
        self.clock.now += 1.0
        return self.model(input_ids=batch, labels=batch).loss

    def validation_step(self, batch, index):
        assert not torch.is_grad_enabled()
        self.log("valid", self.model(input_ids=batch, labels=batch).loss)

    def configure_optimizers(self):
        made = [torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1) for _ in range(self.optimisers)]
        if self.optimisers > 1:
            return made
        pace = torch.optim.lr_scheduler.LambdaLR(made[0], lambda k: 1 - k / 8)
        return {"optimizer": made[0], "lr_scheduler": {"scheduler": pace, "interval": "step"}}


class Memory(pl.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


def tokens(count, seed):
    return torch.randint(0, 11, (count, 6), generator=torch.Generator().manual_seed(seed))


def fit(folder, watched=True, steps=STEPS, resume=None, schedule=None, optimisers=1):
    from villani.integrations.lightning import VillaniCallback

    pl.seed_everything(5, verbose=False)
    clock, logger = Clock(), Memory()
    task = Task(clock, optimisers)
    groups = tokens(6, 9).reshape(3, 2, 6)
    callback = VillaniCallback(
        groups, temperature=0.1, module=lambda t: t.model, schedule=schedule, clock=clock, verbose=True
    )
    trainer = pl.Trainer(
        max_steps=steps, accumulate_grad_batches=2 if optimisers == 1 else 1, accelerator="cpu", logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback] if watched else [],
        val_check_interval=2, num_sanity_val_steps=1, default_root_dir=folder, log_every_n_steps=50,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = torch.utils.data.DataLoader(tokens(64, 1), batch_size=2)
        trainer.fit(task, loader, torch.utils.data.DataLoader(tokens(4, 2), batch_size=2), ckpt_path=resume)
    return task, logger, trainer, callback


def same(left, right):
    return all(torch.equal(p, q) for p, q in zip(left.parameters(), right.parameters(), strict=True))


def measured(logger):
    return [(step, row) for step, row in logger.rows if PREFIX + "psi" in row]


def test_the_bits_are_the_same_and_loggers_get_the_figures(tmp_path):
    plain, *_ = fit(tmp_path, watched=False)
    task, logger, *_ = fit(tmp_path)
    assert same(plain, task)
    assert [step for step, _ in measured(logger)] == list(range(1, STEPS + 1))  # after steps, not after every batch
    assert logger.rows[-1][1][PREFIX + "measurements"] == STEPS
    assert logger.rows[-1][1][PREFIX + "overhead"] <= 0.03
    assert measured(logger)[0][1][PREFIX + "lambda_is_of_F"] == 0.0


def test_a_resumed_schedule_goes_on(tmp_path):
    _whole, told, *_ = fit(tmp_path, schedule=ConstantMemory(cap=1.0))
    _, _, half, _ = fit(tmp_path, steps=2, schedule=ConstantMemory(cap=1.0))
    half.save_checkpoint(tmp_path / "half.ckpt")
    _task, logger, _, callback = fit(tmp_path, resume=tmp_path / "half.ckpt", schedule=ConstantMemory(cap=1.0))
    assert callback.live.schedule.steps == STEPS
    decays = {step: row[PREFIX + "optimizer_weight_decay"] for step, row in measured(told)}
    assert decays == pytest.approx({k: 0.1 / (1 - k / 8) for k in range(1, STEPS + 1)})
    assert {step: row[PREFIX + "optimizer_weight_decay"] for step, row in measured(logger)} == {
        3: decays[3],
        4: decays[4],
    }


def test_a_module_without_forward_gets_a_hint(tmp_path):
    from villani.integrations.lightning import VillaniCallback

    trainer = pl.Trainer(
        callbacks=[VillaniCallback(tokens(6, 9).reshape(3, 2, 6), temperature=0.1)], max_steps=1, logger=False,
        default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"Task has no forward of its own: .* module=lambda task: task\.model"):
        trainer.fit(Task(Clock()), torch.utils.data.DataLoader(tokens(8, 3).reshape(8, 1, -1)[:, 0], batch_size=2))


def test_several_optimisers_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 optimisers"):
        fit(tmp_path, optimisers=2)


class Plain(Task):
    """SGD with L2 at one rate, without dropout; keeps what the steps were taken with."""

    def __init__(self, clock):
        super().__init__(clock)
        self.norms = []
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.model.parameters(), lr=0.01, weight_decay=0.1)

    def on_after_backward(self):
        self.norms.append(float(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm()))


@pytest.mark.parametrize(
    ("clip", "algorithm"), [(None, None), (1e6, "norm"), (0.3, "norm"), (1e6, "value"), (1e-3, "value")]
)
def test_clipping_inside_the_optimisers_closure_is_seen(tmp_path, clip, algorithm, caplog):
    from villani.integrations.lightning import VillaniCallback

    clock, logger = Clock(), Memory()
    task = Plain(clock)
    callback = VillaniCallback(
        tokens(6, 9).reshape(3, 2, 6), temperature=0.1, module=lambda t: t.model, clock=clock, verbose=True
    )
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], default_root_dir=tmp_path, gradient_clip_val=clip,
        gradient_clip_algorithm=algorithm, limit_val_batches=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, torch.utils.data.DataLoader(tokens(8, 1), batch_size=2))
    rows = [row for _, row in measured(logger)]
    assert len(rows) == 2
    for row, norm in zip(rows, task.norms, strict=True):
        factor = min(1.0, clip / norm) if algorithm == "norm" else 1.0
        assert row[PREFIX + "lambda_is_of_F"] == float(factor == 1.0 and algorithm != "value")
        if algorithm == "value":  # may have acted on tensors that are not watched
            assert PREFIX + "descended_lambda" not in row
            assert "clipped by value" in caplog.text
        else:
            assert row[PREFIX + "descended_lambda"] == pytest.approx(0.1 / factor, rel=1e-4)


def fitted_together(folder, rank, size):
    from lightning.fabric.plugins.environments import LightningEnvironment

    from villani.integrations.lightning import VillaniCallback

    ends, told = [], []
    for watched in (False, True):
        pl.seed_everything(5, verbose=False)
        clock, logger = Clock(), Memory()
        task = Task(clock)
        callback = VillaniCallback(
            tokens(6, 9).reshape(3, 2, 6), temperature=0.1, module=lambda t: t.model, clock=clock
        )
        trainer = pl.Trainer(
            max_steps=2, accelerator="cpu", devices=size, strategy="ddp", logger=logger, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[callback] if watched else [],
            default_root_dir=folder, limit_val_batches=0, plugins=[LightningEnvironment()],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(task, torch.utils.data.DataLoader(tokens(64, 1), batch_size=2))
        ends.append(task)
        told = measured(logger)
    return same(*ends), told, callback.live.processes.size, callback.live.measured


def test_two_processes_measure_together_and_keep_their_bits(tmp_path):
    results = run_ranks(2, partial(fitted_together, tmp_path), tmp_path)
    for equal, _, size, count in results:
        assert equal
        assert (size, count) == (2, 2)
    assert [step for step, _ in results[0][1]] == [1, 2]
    assert results[1][1] == []  # process 0 alone logs


# Certificates


BLOCKS = 22


def network(dropout):
    model = make_model("gpt2").float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return model


class Certified(pl.LightningModule):
    """AdamW at one rate over blocks in order."""

    def __init__(self, dropout=0.0, manual=False):
        super().__init__()
        self.model = network(dropout)
        self.automatic_optimization = not manual

    def training_step(self, batch, index):
        if isinstance(batch, list):  # of several loaders
            batch = batch[0]
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)


class Unnamed(Certified):
    def training_step(self, batch, index):
        return self.model(batch, labels=batch).loss


class Stops(Certified):
    def training_step(self, batch, index):
        self.trainer.should_stop = index == 3
        return super().training_step(batch, index)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(tokens(BLOCKS, 1))


def in_order():
    return torch.utils.data.DataLoader(tokens(BLOCKS, 1), batch_size=2)


def certified(folder, task=None, loader=None, resume=None, groups=None, **changes):
    from villani.integrations.lightning import VillaniCallback

    more = {} if groups is None else {"temperature": 0.1}
    callback = VillaniCallback(
        groups, module=lambda t: t.model, certificate="prequential", delta=0.1, candidates=3, **more
    )
    logger = Memory()
    settings = {
        "max_epochs": 1, "accumulate_grad_batches": 2, "accelerator": "cpu", "logger": logger, "devices": 1,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder,
    }  # fmt: skip
    trainer = pl.Trainer(callbacks=[callback], **settings | changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task or Certified(), in_order() if loader is None else loader, ckpt_path=resume)
    return callback.scores, logger, trainer


def losses_by_hand(alpha):
    """Smoothed losses before the step on their blocks, from plain torch."""
    model, losses = network(0.0), []
    stepper = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for number, batch in enumerate(tokens(BLOCKS, 1).split(2)):
        logs = torch.log_softmax(model(input_ids=batch).logits[:, :-1], -1).gather(2, batch[:, 1:, None])
        losses.append(-torch.log((1 - alpha) * logs.detach().double().exp() + alpha / 11).flatten())
        (-logs.mean() / 2).backward()
        if number % 2 or number == BLOCKS // 2 - 1:
            stepper.step()
            stepper.zero_grad()
    return torch.cat(losses).numpy()


def test_a_certificate_is_that_of_a_plain_loop(tmp_path):
    from villani.dynamics.certificate import Moments, token_bound
    from villani.theory.constants import Smoothing

    scores, logger, _ = certified(tmp_path)
    found = scores.certificate
    assert scores.refusal == ""
    assert (found.tokens, found.vocabulary, found.steps, found.delta, found.candidates) == (BLOCKS * 5, 11, 6, 0.1, 3)
    losses = losses_by_hand(found.alpha)
    assert found.empirical == pytest.approx(losses.mean(), rel=1e-5)
    moments = Moments(Smoothing(11, found.alpha), losses.mean(), (losses**2).mean())
    assert found.value == pytest.approx(token_bound(moments, BLOCKS * 5, 0.0, 0.1 / 3 / 2).value, rel=1e-5)
    assert json.loads((tmp_path / "certificate.json").read_text())["value"] == found.value
    assert [row[PREFIX + "certificate"] for _, row in logger.rows if PREFIX + "certificate" in row] == [found.value]


def test_a_certificate_moves_no_bits_and_goes_beside_measurements(tmp_path):
    ends = []
    for groups in (None, tokens(6, 9).reshape(3, 2, 6)):
        pl.seed_everything(5, verbose=False)
        ends.append(Certified(0.3))
        scores, *_ = certified(tmp_path, ends[-1], groups=groups)
        assert scores.certificate
    pl.seed_everything(5, verbose=False)
    plain = Certified(0.3)
    trainer = pl.Trainer(
        max_epochs=1, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(plain, in_order())
    assert all(same(plain, task) for task in ends)


def test_a_stream_and_steps_within_an_epoch_have_a_certificate(tmp_path):
    whole = certified(tmp_path)[0].certificate
    streamed = certified(tmp_path, loader=torch.utils.data.DataLoader(Stream(), batch_size=2))[0].certificate
    assert (streamed.value, streamed.tokens) == (whole.value, whole.tokens)
    part, *_ = certified(tmp_path, max_epochs=-1, max_steps=4)
    assert (part.certificate.steps, part.certificate.tokens) == (4, 80)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"loader": torch.utils.data.DataLoader(tokens(BLOCKS, 1), batch_size=2, shuffle=True)}, "RandomSampler"),
        ({"max_epochs": 2}, "max_epochs=2: in a second epoch"),
        ({"max_epochs": -1, "max_steps": 7}, "max_steps=7 of 6 in an epoch"),
        ({"task": Certified(manual=True), "accumulate_grad_batches": 1}, "manual optimisation"),
        ({"loader": [torch.utils.data.DataLoader(tokens(4, 1), batch_size=2)] * 2}, "expected one DataLoader"),
    ],
)
def test_runs_without_a_certificate_are_refused_when_they_begin(tmp_path, changes, fragment):
    with pytest.raises(InputError, match=fragment):
        certified(tmp_path, **changes)


@pytest.mark.filterwarnings("ignore")
def test_a_resume_and_a_second_run_are_refused(tmp_path):
    _, _, trainer = certified(tmp_path, max_epochs=-1, max_steps=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(InputError, match="resumed at step 2"):
        certified(tmp_path, resume=tmp_path / "half.ckpt", max_epochs=-1, max_steps=4)
    again = pl.Trainer(callbacks=trainer.callbacks, max_epochs=1, accelerator="cpu", logger=False,
                       enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path)  # fmt: skip
    with pytest.raises(InputError, match="trained before"):
        again.fit(Certified(), in_order())


def test_what_the_run_alone_tells_ends_without_a_certificate(tmp_path):
    for changes, fragment in (
        ({"task": Stops()}, "stopped at step"), ({"task": Unnamed()}, "input_ids and labels by name"),
        ({"task": Stops(), "loader": torch.utils.data.DataLoader(Stream(), batch_size=2)}, "stopped at step"),
        ({"max_epochs": -1, "max_steps": 9, "loader": torch.utils.data.DataLoader(Stream(), batch_size=2)}, "epoch"),
    ):  # fmt: skip
        scores, *_ = certified(tmp_path, **changes)
        assert scores.certificate is None
        assert fragment in scores.refusal
    assert not (tmp_path / "certificate.json").exists()


def test_arguments_that_do_not_go_together():
    from villani.integrations.lightning import VillaniCallback

    for given in ({}, {"temperature": 1.0}, {"certificate": "other"}, {"certificate": "prequential", "probes": 2}):
        with pytest.raises(InputError):
            VillaniCallback(**given)
