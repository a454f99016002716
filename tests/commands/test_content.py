"""What `records.json` holds: every kind of record, by its name, and refusals of what is none."""

import json

import pytest

from tests.commands.synthetic import made
from villani.commands.content import read_records, run_records
from villani.commands.registry import COMMANDS
from villani.commands.spectrum.record import SpectrumRecord
from villani.errors import InputError


def written(folder, **changes):
    content = {"schema_version": 1, "villani": "0", "title": "t", "records": []} | changes
    (folder / "records.json").write_text(json.dumps(content))
    return folder / "records.json"


def test_a_record_comes_back_as_what_it_was(tmp_path):
    record = made(SpectrumRecord)
    [again] = read_records(written(tmp_path, records=[record.model_dump(mode="json")])).records
    assert again == record


def test_every_kind_of_every_command_has_a_name_of_its_own():
    kinds = [record.model_fields["kind"].default for command in COMMANDS for record in command.records]
    assert len(kinds) == len(set(kinds))
    schema = json.dumps(run_records().model_json_schema())
    assert all(f'"{kind}"' in schema for kind in kinds)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "schema version 2, but this villani reads 1"),
        ({"records": [{"kind": "nothing"}]}, "not a villani record"),
        ({"records": [{}]}, "not a villani record"),
        ({"more": 1}, "not a villani record"),
    ],
)
def test_other_content_is_refused_in_a_line(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as error:
        read_records(written(tmp_path, **changes))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"records\.json"):
        read_records(tmp_path / "absent" / "records.json")
