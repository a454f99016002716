"""The command line: parse, call, show. No mathematics here.

Progress goes to stderr. Exit codes: 0 done, 2 bad input (one line), 1 anything else; `session` sees to them.
"""

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from typer.exceptions import TyperException

from villani import __version__
from villani.commands.cli_study import study
from villani.commands.cli_training import certify, converge, recommend
from villani.commands.options import (
    AllowUnused,
    Block,
    BlocksChoice,
    Command,
    Data,
    Decay,
    Device,
    Dtype,
    DtypeChoice,
    Finite,
    Json,
    MatrixChoice,
    MicroTokens,
    Model,
    OperatorChoice,
    Probes,
    ProductsChoice,
    Run,
    Sequences,
    ShapeChoice,
    SpecialTokens,
    SpecialTokensChoice,
    TargetChoice,
    Text,
    Threads,
    Tokenizer,
    TraceChoice,
    TrustRemoteCode,
    assignments,
    number,
    numbers,
    optional,
    path_of,
    whole_numbers,
)
from villani.commands.session import run as run_session
from villani.errors import InputError
from villani.report.plain_text import degrade, print_json

app = typer.Typer(
    help="What weight decay does to a Transformer's loss landscape, and which guarantees really follow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(study, name="study")


@app.command(cls=Command)
def measure(
    model: Model,
    text: Text = "builtin",
    tokenizer: Tokenizer = None,
    special_tokens: SpecialTokens = SpecialTokensChoice.auto,
    weight_decay: Annotated[str, typer.Option(help="λ ≥ 0; several with commas")] = "0.1",
    temperature: Annotated[str, typer.Option(help="s > 0; several with commas")] = "1e-3",
    decay: Decay = "all",
    groups: Annotated[int, typer.Option(help="independent groups of blocks, the unit of data noise")] = 16,
    sequences: Sequences = 4,
    block: Block = 128,
    probes: Probes = 1,
    trace: Annotated[TraceChoice, typer.Option(help="way to the Hessian trace")] = TraceChoice.gauss_newton,
    blocks: Annotated[
        BlocksChoice, typer.Option(help="with --trace taylor, what has its own probe")
    ] = BlocksChoice.whole,
    products: Annotated[
        ProductsChoice, typer.Option(help="with --trace hutchinson, way to Hessian-vector products")
    ] = ProductsChoice.reverse_over_reverse,
    target_error: Annotated[
        str | None,
        typer.Option(help="wanted standard error, planned for: a share of the figure, such as 0.05, or abs:NUMBER"),
    ] = None,
    target: Annotated[
        TargetChoice, typer.Option(help="the figure that --target-error is about; psi: at the first λ and s")
    ] = TargetChoice.hessian_trace,
    max_groups: Annotated[int, typer.Option(help="with --target-error, the most groups to measure")] = 4096,
    shares: Annotated[
        int, typer.Option(help="groups sampled tensor by tensor too, where --trace taylor tells no tensors apart")
    ] = 6,
    deflate: Annotated[
        Path | None,
        typer.Option(
            help="with --trace hutchinson, a run of villani spectrum whose eigenvectors are taken exactly",
            parser=path_of,
            metavar="PATH",
        ),
    ] = None,
    finite: Finite = False,
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
    """Measure Ψ_s and what it is made of at a model's weights, with intervals.

    λ and s enter no measurement: asked again with the same --run and another λ or s, the answer is immediate.
    """
    from villani.commands.measure.run import MeasureSettings, measure_model
    from villani.report.terminal import print_measurement, progress
    from villani.work.team import join

    settings = MeasureSettings(
        model=model, text=text, tokenizer=tokenizer, special_tokens=special_tokens.value,
        weight_decay=numbers("weight-decay", weight_decay),
        temperature=numbers("temperature", temperature), decay=decay, groups=groups, sequences=sequences, block=block,
        probes=probes, trace=trace.value, blocks=blocks.value, products=products.value, target_error=target_error,
        target=target.value, max_groups=max_groups, shares=shares, deflate=str(deflate) if deflate else None,
        finite=finite, seed=seed,
        dtype=dtype.value, device=device, threads=threads, micro_tokens=micro_tokens,
        trust_remote_code=trust_remote_code, allow_unused=allow_unused,
    )  # fmt: skip
    with join(device) as team, progress() if team.main else nullcontext() as bar:
        directory, record = measure_model(settings, run, data, bar, team)
    if not team.main:
        return
    if json:
        print_json(record)
    else:
        print_measurement(record, directory)


@app.command(cls=Command)
def audit(
    model: Annotated[
        str | None,
        typer.Argument(help="as for measure; with --replay, where the model is on this machine"),
    ] = None,
    model_: Annotated[str | None, typer.Option("--model", help="the same as MODEL")] = None,
    text: Annotated[
        str | None,
        typer.Option(help="builtin, ptb, wikitext-103, hub:NAME, or UTF-8 files; default builtin or the witness's"),
    ] = None,
    tokenizer: Tokenizer = None,
    special_tokens: SpecialTokens = SpecialTokensChoice.auto,
    weight_decay: Annotated[str, typer.Option(help="λ ≥ 0")] = "0.1",
    temperature: Annotated[str, typer.Option(help="s > 0, at which criterion (iv) is judged")] = "1e-3",
    decay: Decay = "all",
    groups: Annotated[int, typer.Option(help="a third each chooses orbits, leads the search, and confirms")] = 18,
    sequences: Sequences = 4,
    block: Block = 128,
    probes: Probes = 1,
    confirmed: Annotated[int, typer.Option(help="orbits that are measured again on fresh groups")] = 4,
    search: Annotated[int, typer.Option(help="rounds of descent towards a θ where more is refuted; 0 for none")] = 3,
    rays: Annotated[
        str, typer.Option(help="random, gradient, parameters, layer; several with commas; none for none")
    ] = "random,gradient,parameters",
    ray_groups: Annotated[int, typer.Option(help="groups that rays are measured on")] = 4,
    finite: Finite = False,
    seed: Annotated[int | None, typer.Option(help="of everything random; default 0, or the witness's")] = None,
    dtype: Dtype = DtypeChoice.float32,
    device: Device = "cpu",
    threads: Threads = None,
    micro_tokens: MicroTokens = 512,
    trust_remote_code: TrustRemoteCode = False,
    allow_unused: AllowUnused = None,
    replay: Annotated[
        Path | None, typer.Option(help="a witness.safetensors to evaluate again", parser=path_of, metavar="PATH")
    ] = None,
    data: Data = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Is F a Villani function? Four criteria, each with evidence, and a witness of what is refuted.

    Exit code 1 if a --replay does not refute again what its witness claims.
    """
    from villani.commands.audit.replay import replay as evaluate_again
    from villani.commands.audit.run import AuditSettings, audit_model
    from villani.report.terminal import print_audit, print_replay, progress
    from villani.work.team import alone

    alone("villani audit")
    if model_ is not None:
        if model is not None:
            raise InputError(f"audit: {model!r} and --model {model_!r} are both models; give one")
        model = model_
    if replay is not None:
        with progress() as bar:
            directory, again = evaluate_again(
                replay, run, data, bar, model=model, text=text, tokenizer=tokenizer, seed=seed, device=device,
                threads=threads, micro_tokens=micro_tokens, trust_remote_code=trust_remote_code,
                allow_unused=allow_unused,
            )  # fmt: skip
        if json:
            print_json(again)
        else:
            print_replay(again, directory)
        if not again.reproduced:
            raise typer.Exit(1)
        return
    if model is None:
        raise InputError("audit: give a model, or --replay with a witness")
    settings = AuditSettings(
        model=model, text=text or "builtin", tokenizer=tokenizer, special_tokens=special_tokens.value,
        weight_decay=number("weight-decay", weight_decay),
        temperature=number("temperature", temperature), decay=decay, groups=groups, sequences=sequences, block=block,
        probes=probes, confirmed=confirmed, search=search, rays=[] if rays == "none" else rays.split(","),
        ray_groups=ray_groups, finite=finite, seed=seed or 0, dtype=dtype.value, device=device, threads=threads,
        micro_tokens=micro_tokens, trust_remote_code=trust_remote_code, allow_unused=allow_unused,
    )  # fmt: skip
    with progress() as bar:
        directory, record = audit_model(settings, run, data, bar)
    if json:
        print_json(record)
    else:
        print_audit(record, directory)


@app.command(cls=Command)
def spectrum(
    model: Model,
    text: Text = "builtin",
    tokenizer: Tokenizer = None,
    special_tokens: SpecialTokens = SpecialTokensChoice.auto,
    operator: Annotated[OperatorChoice, typer.Option(help="the whole Hessian, or its Gauss–Newton part")] = (
        OperatorChoice.hessian
    ),
    matrix: Annotated[
        MatrixChoice, typer.Option(help="loss: of ∇²L; objective: of ∇²F, with λ on the decayed coordinates")
    ] = MatrixChoice.loss,
    weight_decay: Annotated[str, typer.Option(help="λ ≥ 0")] = "0.1",
    decay: Decay = "all",
    top: Annotated[int, typer.Option(help="how many of the largest eigenvalues")] = 10,
    bottom: Annotated[int, typer.Option(help="how many of the smallest")] = 4,
    tolerance: Annotated[float, typer.Option(help="residual wanted, over the largest |eigenvalue| of its end")] = 1e-3,
    most: Annotated[int, typer.Option(help="products at most")] = 1000,
    basis: Annotated[int | None, typer.Option(help="vectors before a restart; default 2(top + bottom) + 20")] = None,
    density_probes: Annotated[int, typer.Option(help="probes for the density; 0 for none")] = 4,
    density_steps: Annotated[int, typer.Option(help="products for each")] = 40,
    density_shares: Annotated[
        int, typer.Option(help="parts of the data, each with its own probes: errors then cover data too")
    ] = 1,
    layers: Annotated[bool, typer.Option("--layers", help="the diagonal block of every layer too")] = False,
    layer_steps: Annotated[int, typer.Option(help="products for each of two probes on a block")] = 12,
    held_out: Annotated[int, typer.Option(help="more groups, for uᵀHu of the eigenvectors on fresh data")] = 0,
    learning_rate: Annotated[float | None, typer.Option(help="η, to compare λ₁(∇²F) with 2/η")] = None,
    memory: Annotated[float, typer.Option(help="GiB that the process may take; the rest goes to disk")] = 8.0,
    groups: Annotated[int, typer.Option(help="groups that make up the matrix")] = 4,
    sequences: Sequences = 4,
    block: Block = 128,
    finite: Finite = False,
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
    """Eigenvalues of the Hessian at both ends with bounds, the density between them, and where eigenvectors live."""
    from villani.commands.spectrum.run import SpectrumSettings, spectrum_model
    from villani.report.terminal import print_spectrum, progress

    settings = SpectrumSettings(
        model=model, text=text, tokenizer=tokenizer, special_tokens=special_tokens.value,
        operator=operator.value, matrix=matrix.value,
        weight_decay=number("weight-decay", weight_decay), decay=decay, top=top, bottom=bottom, tolerance=tolerance,
        most=most, basis=basis, density_probes=density_probes, density_steps=density_steps,
        density_shares=density_shares, layers=layers, layer_steps=layer_steps, held_out=held_out,
        learning_rate=learning_rate, memory=memory, groups=groups, sequences=sequences, block=block, finite=finite,
        seed=seed, dtype=dtype.value, device=device, threads=threads, micro_tokens=micro_tokens,
        trust_remote_code=trust_remote_code, allow_unused=allow_unused,
    )  # fmt: skip
    with progress() as bar:
        directory, record = spectrum_model(settings, run, data, bar)
    if json:
        print_json(record)
    else:
        print_spectrum(record, directory)


@app.command(cls=Command)
def demo(
    run: Annotated[
        Path, typer.Option(help="run directory", parser=path_of, metavar="PATH", default_factory=lambda: "runs/demo")
    ],
    steps: Annotated[int, typer.Option(help="training steps")] = 1000,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    json: Json = False,
) -> None:
    """Train a small GPT-Neo on text that Python carries, measure it at several λ and s and along a ray."""
    from villani.commands.demo.run import run_demo
    from villani.report.terminal import print_measurement, progress

    with progress() as bar:
        record = run_demo(run, steps=steps, seed=seed, progress=bar)
    if json:
        print_json(record)
    else:
        print_measurement(record, run)


@app.command(cls=Command)
def exact(
    potential: Annotated[
        str | None, typer.Argument(help="name, or L as an expression such as 'log(1+exp(-3*w))'; none: list the names")
    ] = None,
    weight_decay: Annotated[str | None, typer.Option(help="λ ≥ 0; several with commas")] = None,
    temperature: Annotated[str | None, typer.Option(help="s > 0; several with commas")] = None,
    beta: Annotated[str | None, typer.Option(help="β = 2/s, instead of --temperature")] = None,
    dimension: Annotated[str | None, typer.Option(help="d; several with commas; `d` in an expression")] = None,
    shape: Annotated[
        ShapeChoice | None, typer.Option(help="how L extends to d dimensions; default ridge: Gaussian elsewhere")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, a parameter of the potential")] = None,
    digits: Annotated[int | None, typer.Option(help="wanted of C_P; default 8, on planes 6")] = None,
    all_: Annotated[bool, typer.Option("--all", help="recompute the reference values of the theory")] = False,
    run: Run = None,
    output: Annotated[
        Path | None, typer.Option(help="write the page to this file too", parser=path_of, metavar="PATH")
    ] = None,
    json: Json = False,
) -> None:
    """The exact truth about a low-dimensional potential, beside every bound that theory offers for it."""
    from villani.commands.exact.run import ExactSettings, run_exact, run_reference
    from villani.report.terminal import print_catalogue, print_exact, print_reference, progress
    from villani.work.ledger import check_writable, write_atomically
    from villani.work.records import ExactRecord, ReferenceRecord

    asked = [weight_decay, temperature, beta, dimension, shape, set_, digits]
    if potential is None and any(value is not None for value in (asked if all_ else [*asked, run, output])):
        raise InputError("exact: options need a potential; give a name or an expression, or none to list the names")
    if all_ and potential is not None:
        raise InputError(f"--all: recomputes every reference value; leave out {potential!r}")
    if output is not None:
        check_writable(output)
    if potential is None and not all_:
        print_catalogue()
        return
    found: ExactRecord | ReferenceRecord
    with progress() as bar:
        if potential is None:
            directory, found = run_reference(run, bar)
        else:
            settings = ExactSettings(
                potential=potential, weight_decay=optional(numbers, "weight-decay", weight_decay),
                temperature=optional(numbers, "temperature", temperature), beta=optional(numbers, "beta", beta),
                dimension=optional(whole_numbers, "dimension", dimension), parameters=assignments(set_ or []),
                shape=shape.value if shape else None, digits=digits,
            )  # fmt: skip
            directory, found = run_exact(settings, run, bar)
    if output is not None:
        write_atomically(output, (directory / "report.html").read_text(encoding="utf-8"))
    if json:
        print_json(found)
    elif isinstance(found, ReferenceRecord):
        print_reference(found, directory)
    else:
        print_exact(found, directory)
    if isinstance(found, ReferenceRecord) and found.failed:
        raise typer.Exit(1)


@app.command(cls=Command)
def constants(
    model: Model,
    weight_decay: Annotated[str, typer.Option(help="λ > 0; several with commas")] = "0.1",
    temperature: Annotated[str, typer.Option(help="s > 0; several with commas; s = 2 is β = 1")] = "2",
    alpha: Annotated[float, typer.Option(help="prediction smoothing of the certified constant")] = 0.1,
    decay: Annotated[str, typer.Option(help="what decays; constants need all of it")] = "all",
    time: Annotated[
        float,
        typer.Option(help="length of a training run, the sum of its learning rates; 100 is 100,000 steps of 0.001"),
    ] = 100.0,
    curvature: Annotated[
        float | None, typer.Option(help="κ with ∇²L ⪰ −κ where it was looked at, L smoothed: C2, estimated")
    ] = None,
    gradient_norms: Annotated[
        str | None, typer.Option(help="‖∇L‖ where it was looked at, L smoothed; several with commas: C4, estimated")
    ] = None,
    variance: Annotated[
        float | None,
        typer.Option(help="lower confidence limit of a variance u·θ at equilibrium: C9, may refute, statistical"),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_unused: AllowUnused = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """The claimed and the certified log-Sobolev constant of a model, and how far apart they are."""
    from villani.commands.constants.run import ConstantsSettings, run_constants
    from villani.report.terminal import print_constants

    settings = ConstantsSettings(
        model=model, weight_decay=numbers("weight-decay", weight_decay),
        temperature=numbers("temperature", temperature), alpha=alpha, decay=decay, time=time, curvature=curvature,
        gradient_norms=optional(numbers, "gradient-norms", gradient_norms), variance=variance,
        trust_remote_code=trust_remote_code, allow_unused=allow_unused,
    )  # fmt: skip
    directory, record = run_constants(settings, run)
    if json:
        print_json(record)
    else:
        print_constants(record, directory)


for _command in (converge, certify, recommend):
    app.command(cls=Command)(_command)


@app.command(cls=Command)
def report(run: Annotated[Path, typer.Argument(help="run directory", parser=path_of, metavar="RUN")]) -> None:
    """Write RUN/report.html, one self-contained page, from the run's records."""
    from villani.report import write_report

    typer.echo(str(write_report(run)))


@app.command(cls=Command)
def doctor(data: Data = None) -> None:
    """Show versions, device, threads, attention support and data found; exit 1 if measuring would not work."""
    from villani.commands.doctor.run import examine
    from villani.report.terminal import print_doctor

    findings = examine(data)
    print_doctor(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        typer.echo(f"villani {__version__}")
        raise typer.Exit


def with_flags(message: str) -> str:
    """A message of the library as the command line says it: `finite=True` is --finite."""
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    flags = {p.name: p.opts[0] for command in commands for p in command.params if getattr(p, "is_flag", False)}
    return re.sub(r"\b([a-z]\w*)=True\b", lambda match: flags.get(match[1], match[0]), message)


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def command() -> int | None:
    """Parse and run one command; its exit code."""
    degrade(sys.stdout, sys.stderr)
    try:
        code: int | None = app(standalone_mode=False)
    except InputError as error:
        raise InputError(with_flags(str(error))) from error
    except TyperException as error:
        raise InputError(error.format_message()) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "finite_number":  # records take no other
            raise InputError(
                f"the figure {where} overflows: ask for λ, s and the like of a more moderate size"
            ) from error
        raise InputError(f"{where}={str(first['input'])[:80]!r}: {first['msg'].lower()}") from error
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return code


def main() -> None:
    """Run a command and turn what goes wrong into one line and an exit code; see `villani.commands.session`."""
    run_session(command)
