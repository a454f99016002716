"""What an adapter's configuration says about its sum, by the formulas of LoRA, and what is refused."""

import math

import pytest

from tests.inputs.conftest import refused
from villani.inputs.adapter_settings import read_scaling

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}


@pytest.mark.parametrize(("stabilised", "factor"), [(False, 6 / 4), (True, 6 / math.sqrt(4))])
def test_the_factor_is_alpha_over_the_rank_or_its_root(stabilised, factor):
    scaling = read_scaling(PLAIN | {"use_rslora": stabilised}, "adapter")
    assert scaling.factor("model.h.0.attn", 4) == pytest.approx(factor)
    assert scaling.ranks == {4}


def test_patterns_name_the_ends_of_paths_and_the_first_that_fits_counts():
    content = PLAIN | {"alpha_pattern": {"mlp.*": 8, "h.1.mlp.up": 20, "up": 3}, "rank_pattern": {"up": 2}}
    scaling = read_scaling(content, "adapter")
    assert scaling.factor("model.h.1.mlp.up", 2) == 4
    assert scaling.factor("model.h.1.attn.up", 2) == 1.5
    assert scaling.factor("model.up2", 2) == 3, "the whole end has to fit"
    assert scaling.ranks == {2, 4}


def test_targets_are_known_only_where_they_are_a_list_for_all_layers():
    named = {"target_modules": ["q", "v"], "modules_to_save": ["head"]}
    assert read_scaling(PLAIN | named, "a").targets == ("q", "v")
    assert read_scaling(PLAIN | named, "a").whole == ("head",)
    assert read_scaling(PLAIN | named | {"layers_to_transform": [1]}, "a").targets == ()
    assert read_scaling(PLAIN | {"target_modules": "all-linear"}, "a").targets == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3': only LORA is merged"),
        ({"use_dora": True}, "use_dora=True: only plain LoRA"),
        ({"something_new": 3}, "something_new=3: only plain LoRA"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights, too"),
        ({"init_lora_weights": 1}, "init_lora_weights=1"),
        ({"r": 0}, "r=0: expected a whole number"),
        ({"r": True}, "r=True"),
        ({"r": 2.0}, "r=2.0"),
        ({"lora_alpha": math.nan}, "lora_alpha=nan: expected a finite number"),
        ({"lora_alpha": "6"}, "lora_alpha='6'"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern"),
        ({"alpha_pattern": []}, "expected a table"),
        ({"rank_pattern": {"a": -1}}, "rank_pattern=-1"),
        ({"modules_to_save": "head"}, "expected a list of names"),
        ({"use_rslora": "yes"}, "use_rslora='yes'"),
    ],
)
def test_what_might_be_another_function_is_refused_in_a_line(changes, words):
    refused(words, read_scaling, PLAIN | changes, "adapter")


def test_how_it_was_trained_and_what_is_switched_off_change_nothing():
    history = {"bias": "all", "lora_dropout": 0.3, "task_type": "X", "use_dora": False, "something_new": None,
               "init_lora_weights": "gaussian", "layers_pattern": None}  # fmt: skip
    assert read_scaling(PLAIN | history, "a") == read_scaling(PLAIN, "a")
