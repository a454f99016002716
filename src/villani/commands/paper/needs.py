"""What a study is going to take, part by part, in tokens that gradients are taken over; it is told before any work.

Factors are gradients that a unit takes for every token it looks at, held against timed studies: right within about two.
"""

from dataclasses import replace

from villani.commands.paper.parts import SpectraPart
from villani.commands.paper.settings import PaperSettings
from villani.commands.recommend.settings import run_of
from villani.curvature.ways import Way
from villani.work.budget import Needs, Shape

MEASURED = 4.0  # a group measured with one probe
ORBITS = 20.0  # a group in the audit of orbits, over all parts of θ
PRODUCT = 2.0  # with the Hessian
SAMPLED = 3.0  # a probe of the trace, beside a gradient
LOSS = 1 / 3
# stages that one process does, for the larger part: of E5 the reference is one unit
ALONE = frozenset({"criteria", "estimators", "convergence", "certificates", "choice"})
_GRAPHS = Way("hutchinson").graphs
_HELD, _RAY = 5.0, 3.0  # of θ's size: θ at the start, a gradient, a vector, its products; on a ray θ again, directions
_PAIR = 20  # products for an eigenvalue
_GUARD = 12.0 * 24  # blocks of the short audit at the start, times its factor (`villani recommend`)


def units(settings: PaperSettings) -> dict[str, int]:
    """How many units of each kind a study has."""
    trained = len({*map(run_of, settings.cells())})
    estimators = settings.estimators
    return {
        "sweep": trained,
        "criteria": 1 if settings.landscape else 0,
        "landscape": models(settings, "landscape"),
        "spectra": models(settings, "spectra"),
        "convergence": 1 if settings.convergence else 0,
        "certificates": 1 if settings.certificates else 0,
        "estimators": 1 + len(estimators.ways) * estimators.repeats if estimators else 0,
        "pathologies": trained if settings.pathologies else 0,
        "schedules": len(settings.schedules.ways) * settings.schedules.seeds if settings.schedules else 0,
        "forgetting": 1 if settings.forgetting else 0,
        "choice": 1,
    }


def models(settings: PaperSettings, part: str) -> int:
    """How many trained models of SGD E1 or E2 look at."""
    given = getattr(settings, part)
    if given is None:
        return 0
    return len(settings.examined(part)) * len(settings.grid("sgd"))


def tokens(settings: PaperSettings, held_out: int, train: int) -> dict[str, float]:
    """Of every part but the sweep.

    Args:
        settings: the study.
        held_out: blocks that are judged by.
        train: blocks that are trained on.
    """
    block = float(settings.sweep.block)
    made: dict[str, float] = {}
    if planned := settings.schedules:
        sweep, gap = (
            settings.sweep,
            planned.seeds * 2 * planned.blocks / planned.every if "radial-gap" in planned.ways else 0.0,
        )
        made["schedules"] = (units(settings)["schedules"] * sweep.batch + gap) * sweep.steps * block
    made["criteria"] = MEASURED * block if settings.landscape else 0.0
    if land := settings.landscape:
        directions = sum(2 if kind == "random" else 1 for kind in land.rays)
        rays = MEASURED * directions * len({0.0, *land.radii}) * land.ray_groups
        made["landscape"] = models(settings, "landscape") * (rays + ORBITS * land.groups) * land.sequences * block
    if spectra := settings.spectra:
        products = _PAIR * (spectra.top + spectra.bottom) + spectra.density_probes * spectra.density_steps
        again = _PAIR * (len(settings.grid("sgd")) - 1)  # λ₁(∇²F) at the first seed
        whole = PRODUCT * (models(settings, "spectra") * products + again)
        made["spectra"] = whole * spectra.groups * spectra.sequences * block
    if several := settings.estimators:
        estimates = several.repeats * len(several.ways) * (2.0 + SAMPLED * several.probes)
        each = estimates + SAMPLED * several.reference_probes
        made["estimators"] = each * several.groups * several.sequences * block
    if seen := settings.pathologies:
        made["pathologies"] = units(settings)["pathologies"] * 2 * LOSS * seen.blocks * block
    if part := settings.convergence:
        runs = part.chains * len(part.weight_decay or settings.sweep.weight_decay)
        made["convergence"] = runs * part.steps * part.sequences * block
    if certified := settings.certificates:
        blocks = certified.steps * certified.batch + 2 * LOSS * ((certified.blocks or train) + held_out)
        made["certificates"] = len(certified.weight_decay) * blocks * block
    made["choice"] = _GUARD * block if "noisy-sgd" in settings.sweep.optimizers else block
    return made


def looked(settings: PaperSettings) -> float:
    """Of E7, at the start and as part of the training runs."""
    part, sweep = settings.forgetting, settings.sweep
    if part is None:
        return 0.0
    runs = {*map(run_of, settings.cells())}
    traced = 1 + sum(seed in sweep.training_seeds[: part.seeds] for _, _, seed in runs)
    blocks = (1 + len(runs)) * LOSS * (part.blocks + 2 * part.pathologies) + traced * MEASURED * part.groups
    return blocks * sweep.block


def memory(settings: PaperSettings, shape: Shape) -> float:
    """Bytes at the peak in E1, E2 and E5, which differentiate gradients again; E2 keeps vectors within a limit."""
    theta, block = float(shape.parameters * shape.itemsize), settings.sweep.block

    def graph(sequences: int) -> float:
        return _GRAPHS * shape.activations(min(max(512, block), sequences * block), block)

    taken = [0.0]
    if land := settings.landscape:
        taken.append((_HELD + _RAY) * theta + graph(land.sequences))
    if several := settings.estimators:
        taken.append(_HELD * theta + graph(several.sequences))
    if spectra := settings.spectra:
        least = _HELD * theta + graph(spectra.sequences)
        taken.append(max(least, min(least + _vectors(spectra) * theta, spectra.memory * 2**30)))
    return max(taken)


def _vectors(spectra: SpectraPart) -> float:
    """Of E2's basis, and its pairs."""
    pairs = spectra.top + spectra.bottom
    return float((spectra.basis or min(2 * pairs + 20, spectra.most)) + pairs)


def weights(settings: PaperSettings) -> int:
    """Cells whose weights lie on disk at once, since a part looks at them."""
    counts = units(settings)
    looked = any((settings.landscape, settings.spectra, settings.estimators))
    return counts["pathologies"] or (counts["sweep"] // len(settings.sweep.optimizers) if looked else 1)


def vectors(settings: PaperSettings, processes: int = 1) -> float:
    """Beside these, once all are trained: what E2 or E3 lays on disk."""
    own = [3.0] if settings.convergence else [0.0]
    if spectra := settings.spectra:
        own.append(_vectors(spectra) * min(processes, models(settings, "spectra")))
    return max(own)


def with_parts(training: Needs, settings: PaperSettings, shape: Shape, processes: int) -> Needs:
    """What a study takes at the most, in training or after it."""
    theta = float(shape.parameters * shape.itemsize)
    disk = (weights(settings) + vectors(settings, processes)) * theta
    return replace(training, memory=max(training.memory, memory(settings, shape)), disk=max(training.disk, disk))
