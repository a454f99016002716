"""Whole commands as Python calls: the same options as keywords, the record as the result.

A call does what the command does: it keeps finished work in a run folder, goes on there after a kill, and leaves a
page. The options are the fields of the command's settings; a name or value that they do not take is refused.
"""

import os
from pathlib import Path
from typing import Any

from villani.commands.blocks import Settings
from villani.commands.certify.record import CertificateRecord
from villani.commands.certify.settings import CertifySettings
from villani.commands.converge.record import ConvergenceRecord
from villani.commands.converge.settings import ConvergeSettings
from villani.commands.recommend.record import RecommendationRecord
from villani.commands.recommend.settings import RecommendSettings
from villani.commands.running import execute
from villani.work.progress import Progress

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
    record: CertificateRecord = _record(CertifySettings, model, text, options, run, data, progress)
    return record


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
            batch, learning_rate (one number, or optimiser → number), momentum, temperature, rules, seed, …, and
            yes=True to begin work of more than an hour or 5 GiB.

    Returns:
        losses over the grid with errors over seeds and held-out text, and where rules would have led.

    Raises:
        InputError: an option or a number that cannot be used.
    """
    record: RecommendationRecord = _record(RecommendSettings, model, text, options, run, data, progress)
    return record


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
    record: ConvergenceRecord = _record(ConvergeSettings, model, text, options, run, data, progress)
    return record


def _record(
    kind: type[Settings], model: Location, text: Location, options: dict[str, Any], run: Location | None,
    data: Location | None, progress: Progress | None,
) -> Any:  # fmt: skip
    text_option = {} if text == "builtin" else {"text": os.fspath(text)}
    settings = kind.given(model=os.fspath(model), **text_option, **options)
    return execute(settings, Path(run) if run else None, Path(data) if data else None, progress)[1]
