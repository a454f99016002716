import json

import pytest

from villani.commands.content import read_records
from villani.commands.demo import run as demo
from villani.commands.demo.settings import DemoSettings
from villani.commands.measure.record import MeasurementRecord, TrainingRecord
from villani.commands.running import execute
from villani.errors import InputError


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "MEASURED", demo.MEASURED.model_copy(update={"groups": 4, "sequences": 1, "block": 32}))


def test_demo_trains_measures_and_resumes(small, tmp_path):
    _, record = execute(DemoSettings(steps=12), tmp_path / "run")
    text = (tmp_path / "run" / "records.json").read_text()
    training, trained, *ray = read_records(tmp_path / "run" / "records.json").records
    assert isinstance(training, TrainingRecord)
    assert training.loss[-1] < training.loss[0]
    assert len(training.loss) == 12
    assert trained == record.model_copy(update={"cost": None})
    assert len(trained.psi) == 9
    assert all(isinstance(point, MeasurementRecord) for point in ray)
    radii = [point.displacement.radius for point in ray]
    assert radii == sorted(radii)
    checksums = {point.provenance.parameter_checksum for point in [trained, *ray]}
    assert len(checksums) == 1 + len(demo.RADII)
    assert ray[-1].decayed_norm_squared > 50 * trained.decayed_norm_squared
    assert "Along the ray" in (tmp_path / "run" / "report.html").read_text()

    spent = json.loads((tmp_path / "run" / "cost.json").read_text())
    execute(DemoSettings(steps=12), tmp_path / "run")
    assert (tmp_path / "run" / "records.json").read_text() == text
    assert json.loads((tmp_path / "run" / "cost.json").read_text()) == spent

    (tmp_path / "run" / "model" / "model.safetensors").unlink()  # lost weights are trained again, to the same bits
    execute(DemoSettings(steps=12), tmp_path / "run")
    assert (tmp_path / "run" / "records.json").read_text() == text


def test_bad_demo_settings(small, tmp_path):
    with pytest.raises(InputError, match="steps=0"):
        execute(DemoSettings(steps=0), tmp_path / "run")
    execute(DemoSettings(steps=1), tmp_path / "run")
    with pytest.raises(InputError, match="was begun with command"):
        execute(DemoSettings(steps=2), tmp_path / "run")
