"""What the doctor looks at, and that a fault is told as one."""

import pytest

from villani.commands.doctor import run as doctor
from villani.commands.doctor.run import Finding, examine, show


def test_this_machine_is_ready_and_every_part_was_looked_at():
    findings = {f.name: f for f in examine()}
    assert all(f.ok for f in findings.values())
    assert "torch" in findings["versions"].text
    assert findings["second derivatives"].text == "eager and SDPA attention agree"


def test_a_folder_that_is_not_there_is_a_fault_and_none_given_is_not(tmp_path, monkeypatch):
    monkeypatch.delenv("VILLANI_DATA", raising=False)
    [none] = [f for f in examine() if f.name.startswith("data")]
    assert none.ok
    [missing] = [f for f in examine(tmp_path / "absent") if f.name.startswith("data")]
    assert not missing.ok
    [empty] = [f for f in examine(tmp_path) if f.name.startswith("data")]
    assert empty.ok
    assert empty.text.startswith("0 of 4 files found; missing: ptb")


def test_attention_that_disagrees_fails(monkeypatch):
    from villani.measurement import measure as module

    values = iter([1.0, 2.0])

    class Other:
        @property
        def hessian_trace(self):
            return type("Trace", (), {"value": next(values)})()

    monkeypatch.setattr(module, "measure", lambda *_, **__: Other())
    [attention] = [f for f in doctor.examine() if f.name == "second derivatives"]
    assert not attention.ok
    assert "differ" in attention.text


@pytest.mark.parametrize("ok", [True, False])
def test_a_line_begins_with_how_it_stands(ok, capsys):
    show([Finding("device", ok, "cpu [bold]as it is[/bold]")])
    assert capsys.readouterr().out == f"{'ok  ' if ok else 'FAIL'} device: cpu [bold]as it is[/bold]\n"
