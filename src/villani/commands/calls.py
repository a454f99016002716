"""Whole commands as Python calls: the same options as keywords, the record as the result.

A call does what the command does: it keeps finished work in a run folder, goes on there after a kill, and leaves a
page. The options are the fields of the command's settings; a name or value that they do not take is refused.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ValidationError

from villani.commands.certify.prequential import PrequentialSettings, certify_prequential
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.run import CertifySettings
from villani.commands.certify.run import certify as run_certify
from villani.commands.converge.record import ConvergenceRecord
from villani.commands.converge.run import ConvergeSettings
from villani.commands.converge.run import converge as run_converge
from villani.commands.recommend.record import RecommendationRecord
from villani.commands.recommend.run import RATES, TEMPERATURE, RecommendSettings
from villani.commands.recommend.run import recommend as run_recommend
from villani.errors import InputError
from villani.work.progress import Progress

Settings = TypeVar("Settings", bound=BaseModel)
Location = str | os.PathLike[str]


def certify(
    model: Location, text: Location = "builtin", *, run: Location | None = None, data: Location | None = None,
    progress: Progress | None = None, **options: Any,
) -> CertificateRecord:  # fmt: skip
    """Train and certify the risk, in nats per token; `villani certify --help` and docs/certificates.md.

        record = villani.certify("builtin:tiny?layers=1&width=32", weight_decay=0.01, clip=None, start="centre")
        print(record.sentence)

    Args:
        model: a folder, a hub id, `config:NAME` or `builtin:tiny`.
        text: `builtin`, files joined with commas, `ptb`, `wikitext-103`, `hub:NAME`.
        run: folder of the run, with records and page; named after the settings, under runs/, when None.
        data: folder of texts that have names; the environment variable VILLANI_DATA by default.
        progress: told where the work is.
        options: those of `villani certify`, with underscores: weight_decay (one or several), temperature,
            learning_rate, steps, batch, clip (None for none), prior, start, delta, alpha, seed, …, and kind:
            "path" or "prequential". All must be fixed before the certified text is looked at.

    Returns:
        bounds that hold with probability 1 − δ under the hypotheses that each of them names.

    Raises:
        InputError: an option or a number that cannot be used.
    """
    kind = options.pop("kind", "path")
    if kind not in ("path", "prequential"):
        raise InputError(f"kind={kind!r}: expected path or prequential")
    where = _path(run), _path(data), progress
    if kind == "path":
        return run_certify(_settings(CertifySettings, options, model=model, text=text), *where)[1]
    options.setdefault("learning_rate", 1e-3 if options.get("direction") == "adam" else 0.1)
    settings = _settings(PrequentialSettings, options, model=model, text=text, kind=kind)
    return certify_prequential(settings, *where)[1]


def recommend(
    model: Location, text: Location = "builtin", *, run: Location | None = None, data: Location | None = None,
    progress: Progress | None = None, **options: Any,
) -> RecommendationRecord:  # fmt: skip
    """Train over a grid of λ, and say which cannot be told apart from the best; `villani recommend --help`.

        record = villani.recommend("builtin:tiny", weight_decay=[0, 1e-3, 1e-1], optimizers="adamw", seeds=2, steps=50)
        print(record.sentence)

    Args:
        model: as `certify`.
        text: as `certify`; its last tenth is held out, unless `held_out` names another text.
        run: as `certify`.
        data: as `certify`.
        progress: told where the work is.
        options: those of `villani recommend`: weight_decay (at least two, fixed beforehand), optimizers, seeds, steps,
            batch, learning_rate (one number, or optimiser → number), momentum, temperature, rules, seed, ….

    Returns:
        losses over the grid with errors over seeds and held-out text, and where rules would have led.

    Raises:
        InputError: an option or a number that cannot be used.
    """
    options = _listed(RecommendSettings, options)
    optimizers = options.get("optimizers", RecommendSettings.model_fields["optimizers"].default)
    rates = options.get("learning_rate")
    if rates is None or isinstance(rates, Mapping):
        known = {name: RATES[name] for name in optimizers if name in RATES}
        options["learning_rate"] = known | dict(rates or {})
    else:
        options["learning_rate"] = dict.fromkeys(optimizers, rates)
    if options.get("temperature") is None and "noisy-sgd" in optimizers:
        options["temperature"] = TEMPERATURE
    settings = _settings(RecommendSettings, options, model=model, text=text)
    return run_recommend(settings, _path(run), _path(data), progress)[1]


def converge(
    model: Location, text: Location = "builtin", *, run: Location | None = None, data: Location | None = None,
    progress: Progress | None = None, **options: Any,
) -> ConvergenceRecord:  # fmt: skip
    """Run Langevin chains: at which rates they settle, and what that proves; `villani converge --help`.

        record = villani.converge("exact:tied", weight_decay=0.1, temperature=0.2, steps=2000)

    Args:
        model: as `certify`, or `exact:POTENTIAL`.
        text: as `certify`.
        run: as `certify`.
        data: as `certify`.
        progress: told where the work is.
        options: those of `villani converge`: weight_decay and temperature (one or several), learning_rate, steps,
            chains, method, parameters (of a potential: name → number), seed, ….

    Returns:
        fits, equilibria and verdicts: "refuted", "consistent" or "not identifiable", never a proof of a gap.

    Raises:
        InputError: an option or a number that cannot be used.
    """
    settings = _settings(ConvergeSettings, options, model=model, text=text)
    return run_converge(settings, _path(run), _path(data), progress)[1]


def _settings(of: type[Settings], options: Mapping[str, Any], /, **given: Any) -> Settings:
    """The settings of a command, from its options and what is given beside them.

    Raises:
        InputError: the first option that they do not take.
    """
    given |= {name: os.fspath(value) for name, value in given.items() if isinstance(value, os.PathLike)}
    try:
        return of(**_listed(of, {**given, **options}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise InputError(f"{where}: no such option; there are: {', '.join(of.model_fields)}") from error
        raise InputError(f"{where}={str(first['input'])[:80]!r}: {first['msg'].lower()}") from error


def _listed(kind: type[BaseModel], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the settings take them: one value where several may be given is a list of it; arrays are lists."""
    found = dict(options)
    for name, value in options.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        field = kind.model_fields.get(name)
        several = field is not None and list in (
            get_origin(field.annotation),
            *map(get_origin, get_args(field.annotation)),
        )
        if several and plain is not None and (isinstance(plain, str) or not isinstance(plain, Sequence)):
            plain = [plain]
        found[name] = plain
    return found


def _path(location: Location | None) -> Path | None:
    return None if location is None else Path(location)
