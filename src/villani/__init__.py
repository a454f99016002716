"""villani: what weight decay does to a Transformer's loss landscape, and which guarantees really follow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from villani.criteria.audit import Audit as Audit
    from villani.criteria.audit import audit as audit
    from villani.errors import InputError as InputError
    from villani.measurement.measure import measure as measure
    from villani.measurement.measurement import Measurement as Measurement
    from villani.objective.objective import Objective as Objective
    from villani.statistics import Estimate as Estimate

__version__ = "0.1.0"

__all__ = ["Audit", "Estimate", "InputError", "Measurement", "Objective", "__version__", "audit", "measure"]

_HOME = {
    "Audit": "villani.criteria.audit",
    "audit": "villani.criteria.audit",
    "InputError": "villani.errors",
    "Estimate": "villani.statistics",
    "Measurement": "villani.measurement.measurement",
    "Objective": "villani.objective.objective",
    "measure": "villani.measurement.measure",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `villani.theory` and `--help` do not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'villani' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
