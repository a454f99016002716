"""`villani study paper`: a study that is stopped half-way, and what is left of one."""

import json
import re
from pathlib import Path

import pytest

from tests.commands.paper.test_settings import PARTS, QUICK, empty_folder, write  # noqa: F401
from villani.commands.paper import points as paper_points
from villani.commands.paper.record import PaperRecord
from villani.commands.paper.settings import PaperOptions, read_settings
from villani.commands.recommend import sweep as sweeping
from villani.commands.running import execute
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.objective.parameters import ParameterSpace
from villani.work.ledger import Ledger
from villani.work.progress import Progress
from villani.work.stages import Stages
from villani.work.work import Work


@pytest.mark.thorough
def test_a_study_that_is_stopped_goes_on_to_the_same_bytes(villani, monkeypatch, tmp_path):
    words = ["study", "paper", "--config", write(QUICK + PARTS), "--json", "--run"]
    code, out, err = villani(*words, "whole")
    assert code == 0, err
    found = PaperRecord.model_validate_json(out)
    assert found.cost.parts["estimators/hutchinson"] > 0
    assert {"sweep", "choice", "loading the model", "writing the page"} <= found.cost.parts.keys()
    assert re.search(r"E6, rules against the grid, about .* left in all\n", err)
    assert {c.experiment for c in found.claims} == {"exact", "E2", "E3", "E4", "E5"}
    assert found.landscape == []
    assert len(found.spectra) == 4
    shifted = [p for p in found.spectra if p.objective_largest]
    assert [(p.weight_decay, p.seed) for p in shifted] == [(0.1, 0)]
    (twice,) = shifted
    slack = sum((e.interval[1] - e.interval[0]) / 2 for e in (twice.largest, twice.objective_largest))
    assert abs(twice.objective_largest.value - twice.largest.value - 0.1) <= slack
    assert {of.optimizer for of in found.choices} == {"sgd"}
    assert len(found.pathologies) == 4

    assert [p.weight_decay for p in found.spectra if p.density] == [0.0, 0.1]  # of the first training seed
    named = [rule for of in found.choices for rule in of.rules if rule.margin and rule.id != "held-out"]
    assert named
    assert all(f"{rule.name} +{rule.margin.value:.3g} " in found.choice_sentence for rule in named)

    start = ParameterSpace(load_model("builtin:tiny?layers=1&width=8&context=16").model, "all").checksum()
    nested = [*(tmp_path / "whole").glob("c*-*/records.json")]  # chains and certificates begin where training began
    assert len(nested) == 2
    for path in nested:
        (record,) = json.loads(path.read_text())["records"]
        assert record["provenance"]["parameter_checksum"] == start

    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "E2: spectra of ∇²L and ∇²F" in page
    assert page.rindex("claim by claim") > page.rindex("What went in")

    calls, pathology_point = [], paper_points.pathology_point

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pathology_point(*arguments)

    monkeypatch.setattr(paper_points, "pathology_point", stopping)
    code, out, err = villani(*words, "stopped")
    assert (code, out) == (1, "")
    assert "resumes" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["villani"])
    done = []
    monkeypatch.setattr(paper_points, "spectrum_point", lambda *a, **k: done.append(a))
    monkeypatch.setattr("villani.work.work.peak_memory", lambda _: 1)  # a process that did little
    directory, again = execute(PaperOptions(config="study.toml"), Path("stopped"))
    assert not done  # what was finished is not done again
    assert again.cost.peak_memory_bytes > 2**20  # what was measured before it was stopped
    whole, resumed = (tmp_path / name / "records.json" for name in ("whole", "stopped"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert json.loads(resumed.read_text())["records"][0]["kind"] == again.kind

    other = read_settings(Path(write(QUICK.replace("batch = 2", "batch = 3") + PARTS)), None)
    with pytest.raises(InputError, match=r"was begun with sweep\.batch = 2, now 3"):
        execute(PaperOptions(study=other), directory)
    changed = read_settings(Path(write(QUICK + PARTS.replace("blocks = 3", "blocks = 4"))), None)
    looked = []
    monkeypatch.setattr(paper_points, "pathology_point", lambda *a: looked.append(a) or pathology_point(*a))
    execute(PaperOptions(study=changed), directory)
    assert (len(done), len(looked)) == (0, 4)  # what was changed is done again, and nothing else
    kept = read_settings(directory / "settings.toml", None)
    assert kept.model_dump() == changed.model_dump()


CHECKPOINT = """
temperature = [1e-4, 1.0]
cut = ["one λ fewer"]
[sweep]
model = "{model}"
text = "builtin"
tokenizer = "builtin"
block = 16
optimizers = ["sgd"]
weight_decay = [0.0, 0.1]
seeds = 2
steps = 3
batch = 2
train_blocks = 60
held_out_blocks = 8
learning_rate = {{ sgd = 0.1 }}
[spectra]
groups = 1
sequences = 1
top = 1
bottom = 0
basis = 6
most = 12
density_probes = 0
seeds = 1
[pathologies]
blocks = 3
"""


@pytest.mark.thorough
def test_a_study_of_a_checkpoint_is_killed_twice_and_says_what_was_cut(villani, monkeypatch, tmp_path):
    """A saved GPT-Neo of two layers: weights of cells come back where a part still needs them, and go at the end."""
    folder = tmp_path / "model"
    load_model("config:gpt-neo-125m?layers=2&width=8&heads=2&context=32&vocab=2048").model.save_pretrained(folder)
    words = ["study", "paper", "--config", write(CHECKPOINT.format(model=folder)), "--json", "--run"]
    code, out, err = villani(*words, "whole")
    assert code == 0, err
    found = PaperRecord.model_validate_json(out)
    assert [(p.weight_decay, p.seed) for p in found.spectra] == [(0.0, 0), (0.1, 0)]
    assert len(found.training) == 2
    assert "one λ fewer" in found.cut
    assert "E2, spectra: at 1 of 2 training seeds" in found.cut
    assert "E4, certificates: left out; E5, ways to the trace: left out; E2" in (
        tmp_path / "whole" / "report.html"
    ).read_text(encoding="utf-8")
    assert not [*(tmp_path / "whole").rglob("models/*.safetensors")]

    put = Work.put

    def stops(self, key, *arguments, **named):
        put(self, key, *arguments, **named)
        if f"{self._prefix}{key}".endswith("/objective/product/2"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # λ₁(∇²F), when that of ∇²L is done and has forgotten its vectors
        patch.setattr(Work, "put", stops)
        assert villani(*words, "stopped")[0] == 1
    for kind, at in (("spectrum_point", 1), ("pathology_point", 1)):
        real, calls = getattr(paper_points, kind), []

        def stopping(*arguments, real=real, calls=calls, at=at):
            calls.append(arguments)
            if len(calls) == at:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(paper_points, kind, stopping)
        assert villani(*words, "stopped")[0] == 1
        monkeypatch.setattr(paper_points, kind, real)
        if kind == "spectrum_point":  # somebody makes room
            for path in (tmp_path / "stopped").rglob("models/*.safetensors"):
                path.unlink()
    code, _, err = villani(*words, "stopped")
    assert code == 0, err
    whole, resumed = (tmp_path / name / "records.json" for name in ("whole", "stopped"))
    assert whole.read_bytes() == resumed.read_bytes()


LOOKING = """
[landscape]
groups = 8
sequences = 1
ray_groups = 3
rays = []
confirmed = 1
[convergence]
steps = 8
chains = 1
groups = 2
sequences = 1
"""


@pytest.mark.thorough
def test_a_study_goes_on_with_another_grid(tmp_path, monkeypatch):
    """One that was finished, and has no weights any more: what looks at single models may ask for others."""
    small = QUICK.replace("[0.0, 0.1]", "[0.0, 1.0]") + LOOKING
    more = QUICK.replace("[0.0, 0.1]", "[1.0, 0.1]").replace('"sgd"]', '"sgd", "adamw"]') + LOOKING
    more = more.replace("{ sgd = 0.3 }", "{ sgd = 0.3, adamw = 1e-3 }")
    execute(PaperOptions(study=read_settings(Path(write(small)), None)), tmp_path / "grown")
    trained, train_cell = [], sweeping.train_cell
    monkeypatch.setattr(sweeping, "train_cell", lambda *a, **k: trained.append(a[2]) or train_cell(*a, **k))
    settings = PaperOptions(study=read_settings(Path(write(more)), None))
    _, grown = execute(settings, tmp_path / "grown")
    new = [(o, decay, seed) for seed in (0, 1) for o, decay in (("sgd", 0.1), ("adamw", 1.0), ("adamw", 0.1))]
    assert trained[:6] == new
    assert trained[6:] == [("sgd", 1.0, 0)]  # the criteria are of the first model
    assert "another grid" in grown.grid_note
    _, whole = execute(settings, tmp_path / "whole")
    assert whole.grid_note == ""
    assert grown.model_copy(update={"grid_note": "", "cost": None}) == whole.model_copy(update={"cost": None})


def test_what_earlier_processes_did_is_of_the_stage_that_did_it(tmp_path, monkeypatch):
    """Whoever looks a unit up before, and at whatever stage: in the seconds of stages and in the time left."""
    study = QUICK + PARTS[PARTS.index("[pathologies]") :]
    execute(PaperOptions(config=write(study)), tmp_path / "run")
    more = PaperOptions(config=write(study.replace("[0.0, 0.1]", "[0.0, 0.1, 1.0]")))
    monkeypatch.setattr(Ledger, "seconds_of", lambda *_: 1000.0)
    declared, declare = [], Stages.declare
    monkeypatch.setattr(Stages, "declare", lambda self, sizes: declare(self, sizes) or declared.append(self))
    _, record = execute(more, tmp_path / "run")
    assert len(record.pathologies) == 6
    (stages,) = declared
    took = stages.seconds()
    assert {name for name, seconds in took.items() if seconds > 500} == {"sweep", "pathologies"}
    assert 4000 < took["sweep"] < 4500  # 4 of 6 models
    assert 4000 < took["pathologies"] < 4500


def test_a_long_study_is_agreed_to_first(villani, monkeypatch):
    monkeypatch.setattr("villani.work.budget.LONG", 0.0)
    code, _, err = villani("study", "paper", "--config", write(QUICK), "--run", "r")
    assert code == 2
    assert "this study would take roughly" in err
    assert "give --yes to begin all the same" in err
    assert not Path("r").exists()


LANDSCAPE = """
[landscape]
groups = 8
sequences = 1
ray_groups = 3
rays = ["parameters"]
confirmed = 1
"""


@pytest.mark.parametrize(("part", "stage", "pieces"), [
    (PARTS[: PARTS.index("[convergence]")], "E2, spectrum", {}),
    (LANDSCAPE, "E1, Ψ along rays and orbits", {"walking along rays": 4 * 3, "screening orbits": 8}),
])  # fmt: skip
def test_models_are_counted_whatever_stages_looking_at_one_has(tmp_path, part, stage, pieces):
    """A model begins stages of its own, in each of which it counts; at 135M parameters one takes minutes."""
    told, at = [], [""]

    class Told(Progress):
        def stage(self, text):
            at[0] = text

        def advance(self, done, total):
            told.append((at[0], done, total))

    execute(PaperOptions(config=write(QUICK + part)), tmp_path / "run", progress=Told())
    assert [(done, total) for text, done, total in told if text == stage and total == 4][-1] == (4, 4)
    for piece, count in pieces.items():
        assert [done for text, done, total in told if text == piece].count(count) == 4, piece
