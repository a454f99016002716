import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tests.records import build_measurement
from villani.commands.content import run_records
from villani.commands.measure.record import MeasurementRecord
from villani.work.records import EstimateRecord

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"


@pytest.mark.parametrize(("name", "model"), [("measurement", MeasurementRecord), ("run", run_records())])
def test_published_schema_is_the_code(name, model):
    """To publish a change: `python docs/schema/publish.py`, and say so in the changelog."""
    published = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    assert published == model.model_json_schema()


def test_a_record_satisfies_the_published_schema():
    record = json.loads(build_measurement().model_dump_json())
    schema = json.loads((SCHEMAS / "measurement.schema.json").read_text())
    Draft202012Validator(schema).validate(record)
    record["loss"]["value"] = "high"
    assert list(Draft202012Validator(schema).iter_errors(record))


def test_contract_fields_are_there():
    """DESIGN.md, Contracts: what others rely on in `measure --json`."""
    record = json.loads(build_measurement().model_dump_json())
    assert {
        "model", "objective", "loss", "gradient_norm_squared", "gradient_dot_parameters", "hessian_trace",
        "decayed_norm_squared", "psi", "cost", "provenance",
    } <= record.keys()  # fmt: skip
    assert {"weight_decay", "decay", "parameters", "decayed_parameters"} <= record["objective"].keys()
    assert {"value", "sem", "n", "interval", "status"} == record["loss"].keys()
    assert {"weight_decay", "temperature", "parts", "value", "sem", "n", "interval", "status"} == record["psi"][
        0
    ].keys()


def test_records_from_before_products_are_read():
    record = json.loads(build_measurement().model_dump_json())
    del record["design"]["products"]
    assert MeasurementRecord.model_validate(record).design.products == "reverse-over-reverse"


def test_records_refuse_what_is_not_a_number_or_not_known():
    good = {"value": 1.0, "sem": 0.1, "n": 3, "interval": (0.8, 1.2), "status": "statistical"}
    EstimateRecord(**good)
    for change in ({"value": float("nan")}, {"sem": -1.0}, {"status": "confirmed"}, {"extra": 1}):
        with pytest.raises(ValidationError):
            EstimateRecord(**good | change)


@pytest.mark.parametrize("path", sorted(SCHEMAS.parent.glob("results/gpt-neo-125m-*.json")), ids=lambda path: path.stem)
def test_published_results_satisfy_the_published_schema(path):
    schema = json.loads((SCHEMAS / "measurement.schema.json").read_text())
    record = json.loads(path.read_text())
    Draft202012Validator(schema).validate(record)
    psi = record["psi"][0]
    assert sum(part["value"] for part in psi["parts"].values()) == pytest.approx(psi["value"], rel=1e-12)
