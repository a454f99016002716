"""Write the JSON schemas of records beside this file: python docs/schema/publish.py"""

import json
from pathlib import Path

from villani.commands.content import run_records
from villani.commands.measure.record import MeasurementRecord

for name, model in (("measurement", MeasurementRecord), ("run", run_records())):
    text = json.dumps(model.model_json_schema(), indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / f"{name}.schema.json").write_text(text)
