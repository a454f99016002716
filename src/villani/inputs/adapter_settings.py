"""What the configuration of a PEFT adapter says about its sum; a key that might choose another function is refused."""

import math
import re
from dataclasses import dataclass
from typing import Any

from villani.errors import InputError
from villani.inputs.checkpoints import ADAPTER
from villani.work.foreign import check_unseen, clipped, pattern_of

REMEDY = "merge it once with peft (merge_and_unload), save_pretrained, and give that folder as the model"
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"}
# How an adapter was trained, and not what it is.
_HISTORY = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias",
    "lora_dropout", "megatron_core", "merge_weights", "peft_version", "qalora_group_size", "revision",
    "target_modules", "task_type",
}  # fmt: skip
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # others change the base's weights, too


@dataclass(frozen=True)
class Scaling:
    """What an adapter's configuration says about its sum.

    Attributes:
        alpha: α.
        patterns: α of the modules whose path a pattern fits, the first one that does.
        stabilised: s = α/√r rather than α/r.
        ranks: those that it names.
        whole: ends of the paths of modules that were trained whole.
        targets: ends of the paths of modules that all have a pair; none where the configuration says it otherwise.
    """

    alpha: float
    patterns: tuple[tuple[re.Pattern[str], float], ...]
    stabilised: bool
    ranks: frozenset[int]
    whole: tuple[str, ...]
    targets: tuple[str, ...]

    def factor(self, path: str, rank: int) -> float:
        """s of a module."""
        alpha = next((alpha for pattern, alpha in self.patterns if pattern.match(path)), self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def read_scaling(content: dict[str, Any], name: str) -> Scaling:
    """The configuration of an adapter, by what counts in it.

    Args:
        content: of adapter_config.json.
        name: of the adapter in messages.

    Raises:
        InputError: another kind of adapter than plain LoRA, or a value that cannot be.
    """
    place = f"{name}: {ADAPTER}"
    if content.get("peft_type") != "LORA":
        kind = clipped(repr(content.get("peft_type")))
        raise InputError(f"{place} says peft_type={kind}: only LORA is merged; {REMEDY}")
    start = content.get("init_lora_weights", True)
    if not any(start is one or (isinstance(one, str) and start == one) for one in _STARTS):
        raise InputError(
            f"{place} says init_lora_weights={clipped(repr(start))}, which changes the base's weights, too; {REMEDY}"
        )
    for key, value in content.items():
        if key not in _HISTORY | _READ | {"init_lora_weights"} and value not in (None, False, [], {}):
            raise InputError(f"{place} says {clipped(key)}={clipped(repr(value))}: only plain LoRA is merged; {REMEDY}")
    rank = _whole(content.get("r"), f"{place}: r")
    ranks = _table(content.get("rank_pattern"), f"{place}: rank_pattern")
    alphas = _table(content.get("alpha_pattern"), f"{place}: alpha_pattern")
    patterns = []
    for text, alpha in alphas.items():
        what = f"{place}: alpha_pattern {clipped(repr(text))}"
        check_unseen(text, what)
        patterns.append((pattern_of(rf"(.*\.)?({text})$", what), _number(alpha, what)))
    if not isinstance(content.get("use_rslora", False), bool | None):
        raise InputError(f"{place}: use_rslora={clipped(repr(content['use_rslora']))}: expected true or false")
    selected = any(content.get(key) for key in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    targets = content.get("target_modules")
    return Scaling(
        alpha=_number(content.get("lora_alpha"), f"{place}: lora_alpha"),
        patterns=tuple(patterns),
        stabilised=bool(content.get("use_rslora")),
        ranks=frozenset({rank, *(_whole(one, f"{place}: rank_pattern") for one in ranks.values())}),
        whole=_names(content.get("modules_to_save"), f"{place}: modules_to_save"),
        targets=() if selected or isinstance(targets, str) else _names(targets, f"{place}: target_modules"),
    )


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{what}={clipped(repr(value))}: expected a whole number ≥ 1")
    return value


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
        raise InputError(f"{what}={clipped(repr(value))}: expected a finite number")
    return float(value)


def _names(value: Any, what: str) -> tuple[str, ...]:
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) and one for one in value)):
        raise InputError(f"{what}={clipped(repr(value))}: expected a list of names")
    return tuple(value or ())


def _table(value: Any, what: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{what}={clipped(repr(value))}: expected a table of names")
    return value or {}
