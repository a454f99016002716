"""The library's face: every public name, and where it lives. `villani/_lazy.py` reads it too."""

from villani.commands.calls import certify as certify
from villani.commands.calls import converge as converge
from villani.commands.calls import recommend as recommend
from villani.commands.results import load as load
from villani.commands.results import report as report
from villani.criteria.audit import Audit as Audit
from villani.criteria.audit import audit as audit
from villani.criteria.guard import GuardMeter as GuardMeter
from villani.curvature.hessian import HessianOperator as HessianOperator
from villani.dynamics.mixture import Mixture as Mixture
from villani.dynamics.sampler import Langevin as Langevin
from villani.dynamics.schedules import ConstantMemory as ConstantMemory
from villani.dynamics.schedules import GuardFollowing as GuardFollowing
from villani.dynamics.schedules import LeastCertificate as LeastCertificate
from villani.errors import InputError as InputError
from villani.inputs.groups import groups_from_text as groups_from_text
from villani.inputs.models import load_model as load_model
from villani.integrations.huggingface import VillaniCallback as VillaniCallback
from villani.measurement.measure import measure as measure
from villani.measurement.measure_to import measure_to as measure_to
from villani.measurement.measurement import Measurement as Measurement
from villani.measurement.spectrum import Spectrum as Spectrum
from villani.measurement.spectrum import eigenpairs as eigenpairs
from villani.measurement.spectrum import spectrum as spectrum
from villani.measurement.target import Target as Target
from villani.objective.objective import Objective as Objective
from villani.statistics import Estimate as Estimate

from . import theory as theory

__version__: str
