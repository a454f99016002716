"""The page of a run: every record of it, each told of by its own command."""

from villani.commands.pages import page, sections
from villani.commands.registry import command_for


def test_every_record_of_a_run_is_on_its_page(demo_run, measurement_record, run_records):
    assert {command_for(record).name for record in demo_run.records} == {"measure"}
    assert len(sections(demo_run.records, {})) == 1  # a demo's measurements are told of together
    text = page(run_records(measurement_record(), title="one <b>title</b>"), {})
    assert "one &lt;b&gt;title&lt;/b&gt;" in text
