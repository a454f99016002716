"""The commands that train: parse, call, show; `villani.cli` has the others."""

from pathlib import Path
from typing import Annotated

import typer

from villani.commands.options import (
    AllowUnused,
    Block,
    ChainStartChoice,
    Data,
    Decay,
    Device,
    DirectionChoice,
    Dtype,
    DtypeChoice,
    Json,
    KindChoice,
    MethodChoice,
    MicroTokens,
    Model,
    PriorChoice,
    Run,
    ScaleChoice,
    ScheduleChoice,
    SpecialTokens,
    SpecialTokensChoice,
    StartChoice,
    Text,
    Threads,
    Tokenizer,
    TowardsChoice,
    TrustRemoteCode,
    assignments,
    choices,
    number,
    numbers,
    optional,
    path_of,
    rates,
)
from villani.report.plain_text import print_json


def converge(
    model: Annotated[
        str, typer.Argument(help="a model as for measure, or exact:POTENTIAL, a name or expression as for exact")
    ],
    text: Text = "builtin",
    tokenizer: Tokenizer = None,
    special_tokens: SpecialTokens = SpecialTokensChoice.auto,
    weight_decay: Annotated[str | None, typer.Option(help="λ ≥ 0; several with commas; default 0.1")] = None,
    temperature: Annotated[str | None, typer.Option(help="s > 0; several with commas; default 1e-3")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="step size η; default 1e-3, of a potential a tenth of 1/curvature")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="of each chain; default 400, of a potential 4000")] = None,
    chains: Annotated[int | None, typer.Option(help="independent chains; default 4, of a potential 8")] = None,
    walkers: Annotated[int | None, typer.Option(help="of a potential: walkers in each chain; default 64")] = None,
    method: Annotated[MethodChoice, typer.Option(help="how a chain moves")] = MethodChoice.noisy_sgd,
    momentum: Annotated[float, typer.Option(help="with noisy-sgd, 0 ≤ μ < 1")] = 0.0,
    schedule: Annotated[ScheduleChoice, typer.Option(help="of step sizes; s stays")] = ScheduleChoice.constant,
    full: Annotated[bool, typer.Option("--full", help="gradients of the whole data set, not of mini-batches")] = False,
    start: Annotated[
        StartChoice, typer.Option(help="spread: odd chains begin at a draw of the prior, or at the mirror image")
    ] = StartChoice.same,
    coupled: Annotated[
        bool, typer.Option("--coupled", help="also two chains with common noise; holds a second model")
    ] = False,
    log_every: Annotated[int | None, typer.Option(help="steps between logged observables; default 5")] = None,
    psi_every: Annotated[int, typer.Option(help="steps between measurements of Ψ; 0 for none")] = 0,
    psi_groups: Annotated[int, typer.Option(help="groups of such a measurement")] = 6,
    decay: Decay = "all",
    groups: Annotated[int, typer.Option(help="groups of blocks that make up the data set")] = 64,
    sequences: Annotated[int, typer.Option(help="blocks in a group, and in a mini-batch")] = 4,
    block: Block = 128,
    set_: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a parameter of the potential")] = None,
    dimension: Annotated[int | None, typer.Option(help="d of the potential")] = None,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    dtype: Dtype = DtypeChoice.float32,
    device: Device = "cpu",
    threads: Threads = None,
    micro_tokens: MicroTokens = 512,
    trust_remote_code: TrustRemoteCode = False,
    allow_unused: AllowUnused = None,
    data: Data = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Run noisy SGD at several λ and s: at which rates its observables settle, and what that proves.

    A chain that diverges is reported and ends; the others go on.
    """
    from villani.commands.converge.run import ConvergeSettings
    from villani.commands.converge.run import converge as run_converge
    from villani.report.terminal import print_convergence, progress

    settings = ConvergeSettings(
        model=model, text=text, tokenizer=tokenizer, special_tokens=special_tokens.value,
        weight_decay=optional(numbers, "weight-decay", weight_decay),
        temperature=optional(numbers, "temperature", temperature), learning_rate=learning_rate, steps=steps,
        chains=chains, walkers=walkers, method=method.value, momentum=momentum, schedule=schedule.value, full=full,
        start=start.value, coupled=coupled, log_every=log_every, psi_every=psi_every, psi_groups=psi_groups,
        decay=decay, groups=groups, sequences=sequences, block=block, parameters=assignments(set_ or []),
        dimension=dimension, seed=seed, dtype=dtype.value, device=device, threads=threads, micro_tokens=micro_tokens,
        trust_remote_code=trust_remote_code, allow_unused=allow_unused,
    )  # fmt: skip
    with progress() as bar:
        directory, record = run_converge(settings, run, data, bar)
    if json:
        print_json(record)
    else:
        print_convergence(record, directory)


def certify(
    model: Model,
    text: Text = "builtin",
    held_out: Annotated[str | None, typer.Option(help="other text to hold against; default: the last tenth")] = None,
    tokenizer: Tokenizer = None,
    special_tokens: SpecialTokens = SpecialTokensChoice.auto,
    block: Block = 128,
    blocks: Annotated[int | None, typer.Option(help="certified blocks at most; default: all there are")] = None,
    prior: Annotated[
        PriorChoice,
        typer.Option(
            help="centre of the prior: init, random weights; text, trained on the first part of the text; given, the "
            "model's weights, which by your word never saw the rest"
        ),
    ] = PriorChoice.init,
    prior_share: Annotated[float, typer.Option(help="with --prior text, the share that trains the centre")] = 0.5,
    prior_steps: Annotated[int, typer.Option(help="with --prior text, AdamW steps")] = 500,
    train: Annotated[str, typer.Option(help="what moves: all, or a regular expression on names of tensors")] = "all",
    scale: Annotated[
        ScaleChoice, typer.Option(help="noise in units of 1, or of each tensor's size")
    ] = ScaleChoice.unit,
    kind: Annotated[
        KindChoice,
        typer.Option(
            help="path: noisy training, its path and c4 certificates; prequential: one pass, each block scored before "
            "it is trained on, no noise and no complexity, about the iterates"
        ),
    ] = KindChoice.path,
    direction: Annotated[DirectionChoice, typer.Option(help="of the steps")] = DirectionChoice.sgd,
    start: Annotated[ChainStartChoice, typer.Option(help="c4 needs a start in the prior")] = ChainStartChoice.prior,
    weight_decay: Annotated[
        str | None,
        typer.Option(help="λ ≥ 0 towards the centre; several with commas; default 1, with --kind prequential 0.01"),
    ] = None,
    towards: Annotated[
        TowardsChoice, typer.Option(help="with --kind prequential, what decay pulls towards")
    ] = TowardsChoice.centre,
    temperature: Annotated[str, typer.Option(help="s > 0: noise √(ηs) a step, prior variance s/(2λ)")] = "1e-4",
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="η, default 0.1; with --kind prequential several with commas, and default 1e-3 for --direction adam"
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option(help="with --kind prequential, steps over which η rises; it is constant then")
    ] = 0,
    steps: Annotated[int, typer.Option(help="K, steps of a run")] = 200,
    batch: Annotated[int, typer.Option(help="blocks in a step")] = 8,
    clip: Annotated[
        str,
        typer.Option(
            help="largest norm of a direction, with --kind prequential of a gradient; c4 needs one; none for none"
        ),
    ] = "1",
    chains: Annotated[int, typer.Option(help="J, independent runs at every λ; c4 needs many")] = 1,
    delta: Annotated[float, typer.Option(help="δ: everything holds at once with probability 1 − δ")] = 0.05,
    candidates: Annotated[
        int, typer.Option(help="size of the grid of settings that these were chosen from; δ is divided by it")
    ] = 1,
    alpha: Annotated[str, typer.Option(help="prediction smoothing; several with commas")] = "0.01,0.1",
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    micro_tokens: MicroTokens = 4096,
    allow_unused: AllowUnused = None,
    data: Data = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Train and certify the risk, with noise or in one pass: bounds in nats per token, beside what they compete with.

    Choose all settings before the certified text is looked at, or say with --candidates how many there were.
    """
    from villani.commands.certify.prequential import PrequentialSettings, certify_prequential
    from villani.commands.certify.run import CertifySettings
    from villani.commands.certify.run import certify as run_certify
    from villani.report.terminal import print_certificate, progress

    if kind is KindChoice.prequential:
        default = "1e-3" if direction is DirectionChoice.adam else "0.1"
        passed = PrequentialSettings(
            model=model, kind="prequential", text=text, held_out=held_out, tokenizer=tokenizer,
            special_tokens=special_tokens.value, block=block, blocks=blocks, prior=prior.value, prior_share=prior_share,
            prior_steps=prior_steps, train=train, direction=direction.value, towards=towards.value,
            weight_decay=numbers("weight-decay", "0.01" if weight_decay is None else weight_decay),
            learning_rate=numbers("learning-rate", default if learning_rate is None else learning_rate),
            warm_up=warm_up, batch=batch,
            clip=None if clip == "none" else number("clip", clip), delta=delta, candidates=candidates,
            alpha=numbers("alpha", alpha), seed=seed, device=device, threads=threads, micro_tokens=micro_tokens,
            allow_unused=allow_unused,
        )  # fmt: skip
        with progress() as bar:
            directory, record = certify_prequential(passed, run, data, bar)
        if json:
            print_json(record)
        else:
            print_certificate(record, directory)
        return
    settings = CertifySettings(
        model=model, text=text, held_out=held_out, tokenizer=tokenizer, special_tokens=special_tokens.value,
        block=block, blocks=blocks, prior=prior.value,
        prior_share=prior_share, prior_steps=prior_steps, train=train, scale=scale.value, direction=direction.value,
        start=start.value, weight_decay=numbers("weight-decay", "1" if weight_decay is None else weight_decay),
        temperature=number("temperature", temperature),
        learning_rate=number("learning-rate", "0.1" if learning_rate is None else learning_rate), steps=steps,
        batch=batch,
        clip=None if clip == "none" else number("clip", clip), chains=chains, delta=delta, candidates=candidates,
        alpha=numbers("alpha", alpha), seed=seed, device=device, threads=threads,
        micro_tokens=micro_tokens, allow_unused=allow_unused,
    )  # fmt: skip
    with progress() as bar:
        directory, record = run_certify(settings, run, data, bar)
    if json:
        print_json(record)
    else:
        print_certificate(record, directory)


def recommend(
    model: Model,
    text: Text = "builtin",
    held_out: Annotated[str | None, typer.Option(help="other text to judge by; default: the last tenth")] = None,
    tokenizer: Tokenizer = None,
    special_tokens: SpecialTokens = SpecialTokensChoice.auto,
    block: Block = 128,
    optimizer: Annotated[
        str, typer.Option("--optimizer", "--optimizers", help="sgd (L2), noisy-sgd, adamw; several with commas")
    ] = "sgd,noisy-sgd,adamw",
    weight_decay: Annotated[
        str, typer.Option(help="λ ≥ 0 as torch's optimiser takes it, several with commas; grid: 0 and 1e-4 to 10")
    ] = "grid",
    seeds: Annotated[int, typer.Option(help="training seeds: order of batches, and weights where they are random")] = 3,
    steps: Annotated[int, typer.Option(help="of each training run")] = 300,
    batch: Annotated[int, typer.Option(help="blocks in a step")] = 8,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="η at its peak: one number, or sgd=0.1,adamw=2e-3; default sgd 0.1, noisy-sgd 0.5, adamw 2e-3"
        ),
    ] = None,
    momentum: Annotated[float, typer.Option(help="of sgd")] = 0.9,
    temperature: Annotated[float | None, typer.Option(help="s > 0 of noisy-sgd; default 1e-6")] = None,
    clip: Annotated[str, typer.Option(help="largest norm of a step's gradient; none for none")] = "1",
    decay: Decay = "all",
    evaluate_every: Annotated[int, typer.Option(help="steps between points of the curves; 0: start and end")] = 0,
    train_blocks: Annotated[int | None, typer.Option(help="train on the first so many blocks; default: all")] = None,
    held_out_blocks: Annotated[int, typer.Option(help="judge by at most so many blocks")] = 256,
    rules: Annotated[str, typer.Option(help="which rules to ask, several with commas; all for all")] = "all",
    verify_rules: Annotated[
        bool, typer.Option("--verify-rules", help="train at the rules' own λ too, not only on the grid")
    ] = False,
    audit: Annotated[
        Path | None,
        typer.Option(
            help="a run of villani audit, for the guard; default: a short audit at the start",
            parser=path_of,
            metavar="PATH",
        ),
    ] = None,
    delta: Annotated[float, typer.Option(help="δ: all bounds hold at once with probability 1 − δ")] = 0.05,
    alpha: Annotated[float, typer.Option(help="prediction smoothing of the bounds")] = 0.1,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    device: Device = "cpu",
    threads: Threads = None,
    allow_unused: AllowUnused = None,
    data: Data = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Which weight decay? Train over a grid of λ, and see where rules of thumb and of theory would have led.

    Fix the grid before the held-out text is looked at. Cost: optimisers × λ × seeds training runs.
    """
    from villani.choice.rules import RULES
    from villani.commands.recommend.run import GRID, RATES, TEMPERATURE, RecommendSettings
    from villani.commands.recommend.run import recommend as run_recommend
    from villani.commands.recommend.sweep import OPTIMIZERS
    from villani.report.terminal import print_recommendation, progress

    asked = choices("optimizer", optimizer, OPTIMIZERS)
    if temperature is None and "noisy-sgd" in asked:
        temperature = TEMPERATURE
    settings = RecommendSettings(
        model=model, text=text, held_out=held_out, tokenizer=tokenizer, special_tokens=special_tokens.value,
        block=block, optimizers=asked,
        weight_decay=GRID if weight_decay == "grid" else numbers("weight-decay", weight_decay), seeds=seeds,
        steps=steps, batch=batch, learning_rate=rates(learning_rate, asked, RATES), momentum=momentum,
        temperature=temperature, clip=None if clip == "none" else number("clip", clip), decay=decay,
        evaluate_every=evaluate_every, train_blocks=train_blocks, held_out_blocks=held_out_blocks,
        rules=list(RULES) if rules == "all" else choices("rules", rules, tuple(RULES)), verify_rules=verify_rules,
        audit=str(audit) if audit else None, delta=delta, alpha=alpha, seed=seed, device=device, threads=threads,
        allow_unused=allow_unused,
    )  # fmt: skip
    with progress() as bar:
        directory, record = run_recommend(settings, run, data, bar)
    if json:
        print_json(record)
    else:
        print_recommendation(record, directory)
