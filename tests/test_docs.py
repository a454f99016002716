"""What README and docs/ show and say: commands and code run, at a tiny size; links and citations lead somewhere."""

import re
import runpy
import shlex
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import pytest

from villani.cli import parse
from villani.commands.blocks import Settings
from villani.commands.running import execute
from villani.errors import InputError
from villani.inputs.corpora import load_corpus

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = "builtin:tiny?layers=1&width=8&context=32"
SHAPE = {"layers": 1, "width": 32, "heads": 2, "vocab": 2048}
SMALL = {
    "groups": 12, "sequences": 1, "block": 16, "steps": 8, "blocks": 24, "train_blocks": 24, "held_out_blocks": 8,
    "prior_steps": 4, "batch": 4, "chains": 2, "confirmed": 1, "search": 1, "ray_groups": 3, "psi_groups": 4, "top": 2,
    "bottom": 1, "density_steps": 4, "density_probes": 2, "layer_steps": 2, "held_out": 3, "seeds": 2, "walkers": 4,
}  # fmt: skip
READ_ONLY = {  # too long at any size; what runs them instead
    "study paper": "tests/commands/paper/test_run.py",
    "exact --all": "tests/commands/exact/test_run.py",
    "demo": "tests/commands/demo/test_run.py",
}
REFUTED = ["--decay", "hf", "--rays", "none", "--search", "0", "--temperature", "1"]
FILES = {
    "--adapter": "adapter",
    "--deflate": "spectrum",
    "--replay": "witness",
    "--config": "study",
    "--held-out": "text",
}


def shown() -> list[tuple[str, str]]:
    """(page, command) of every line in a block of code, and of every piece of code in a sentence that has arguments."""
    commands: dict[tuple[str, str], None] = {}
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        lines = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        pieces = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for piece in [*lines, *(" ".join(piece.split()) for piece in pieces)]:
            if not re.match(r"\s*(\.venv/bin/)?villani [a-z]", piece) or "…" in piece:
                continue
            words = shlex.split(piece.replace(".venv/bin/", ""), comments=True)
            if len(words) > (3 if words[1] == "study" else 2):
                commands[page.name, shlex.join(words)] = None
    return list(commands)


def filled(command: str, places: dict[str, str]) -> list[str]:
    """Its words, with files that exist in place of those that a reader has."""
    words = shlex.split(command)[1:]
    if words[0] == "compare":
        return ["compare", *(places[name] for name in ("measure", "other"))]
    for place, (before, word) in enumerate(zip(["", *words[:-1]], words, strict=True)):
        if before in FILES and not word.isdigit():
            words[place] = places[FILES[before]]
        elif before in ("--text", "--tokenizer"):
            words[place] = places["documents"] if before == "--text" and "--iid-documents" in words else "builtin"
        elif before != "--run" and re.fullmatch(r"MODEL|BASE|(runs|path|\.)/\S+|gpt2", word):
            words[place] = places["base"] if "--adapter" in words else TINY
        elif word.startswith("config:"):
            name, _, shape = word.partition("?")
            words[place] = f"{name}?{urlencode(dict(parse_qsl(shape)) | SHAPE)}"
    words += ["--text", places["documents"]] * ("--iid-documents" in words and "--text" not in words)
    return words + ["--tokenizer", "builtin"] * ("--adapter" in words and "--tokenizer" not in words)


def small(settings: Settings) -> Settings:
    """The same at a size that takes a second."""
    given = settings.model_dump()
    values = {name: most for name, most in SMALL.items() if isinstance(given.get(name), int) and given[name] > most}
    values |= {name: given[name][:1] for name in ("dimension", "temperature") if isinstance(given.get(name), list)}
    if settings.name in ("certify", "recommend"):
        few = (
            () if given.get("iid_documents") else ("blocks", "train_blocks")
        )  # a number of documents is the text's own
        values |= {name: SMALL[name] for name in few if name in given}
    if settings.name == "converge" and settings.model.startswith("exact:"):
        values["steps"] = 50
    if given.get("target_error"):
        values["target_error"] = "abs:1e6" if "abs" in given["target_error"] else "20"
    if isinstance(given.get("weight_decay"), list):
        values["weight_decay"] = given["weight_decay"][: 1 if settings.name == "exact" else 2]
    return settings.model_copy(update=values)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, str]:
    """A witness, eigenvectors, measurements, an adapter and a study, as commands of the pages leave them."""
    folder = tmp_path_factory.mktemp("docs")
    text = ["--sequences", "1", "--block", "16"]
    ways = {
        "audit": ["audit", TINY, "--groups", "12", *text, *REFUTED],
        "spectrum": ["spectrum", TINY, "--groups", "2", *text, "--top", "2", "--bottom", "1", "--tolerance", "0.1"],
        "measure": ["measure", TINY, "--groups", "3", *text],
        "other": ["measure", TINY, "--groups", "3", *text, "--seed", "1"],
    }  # fmt: skip
    for name, words in ways.items():
        execute(parse(words)[1], folder / name)
    script = runpy.run_path(str(ROOT / "examples" / "random_adapter.py"))
    script["main"](str(checkpoint), folder / "adapter")
    study = folder / "study.toml"
    study.write_text('text = "builtin"\n')
    (folder / "text").write_text("A few sentences that nobody trains on. " * 200)
    documents = [folder / f"document-{number}" for number in range(24)]
    for path, document in zip(documents, load_corpus("builtin").documents, strict=False):
        path.write_text(document[:300])
    places = {name: str(folder / name) for name in ("spectrum", "adapter", "text", "measure", "other")}
    places["documents"] = ",".join(map(str, documents))
    witness = folder / "audit" / "witness.safetensors"
    return places | {"base": str(checkpoint), "witness": str(witness), "study": str(study)}


def parts(settings: Settings) -> set[str]:
    """What a run tries out: options with their values, but for numbers, files and places, and the kind of model."""
    words = [settings.name, *shlex.split(settings.command())[1:]]
    free = re.compile(r"(abs:|[\w-]+=)?[\d.e,+-]+(,[\w-]+=[\d.e,+-]+)*|.*/.*|--(threads|seed|tokenizer|set)")
    kinds = (
        re.sub(r"[?].*|(?<=^config:).*|.*[(].*|(?<=^ce)\d", "", word) for word in words if not free.fullmatch(word)
    )
    return {f"{settings.name} {kind}" for kind in kinds}


def read(places: dict[str, str]) -> list[tuple[str, Settings]]:
    """Page and command → its settings, all of which are read and checked."""
    commands = shown()
    assert len(commands) > 40
    settings: list[tuple[str, Settings]] = []
    for page, command in commands:
        try:
            settings.append((f"{page}: {command}", small(parse(filled(command, places))[1])))
        except InputError as error:
            pytest.fail(f"{page}: {command}: {error}")
    return settings


def test_every_command_of_the_pages_is_read(tmp_path):
    """With empty folders in place of files and runs: what is in them is looked at when a command runs."""
    names = ("base", "witness", "study", "spectrum", "adapter", "text", "measure", "other", "documents")
    empty = {name: tmp_path / name for name in names}
    for folder in empty.values():
        folder.mkdir()
    read({name: str(folder) for name, folder in empty.items()})


@pytest.mark.thorough
def test_every_command_of_the_pages_runs(places, tmp_path, monkeypatch):
    """Of all, those that bring an option or a value that no longer command of their kind had."""
    monkeypatch.chdir(tmp_path)
    ways = [entry for entry in read(places) if not any(f"villani {name}" in entry[1].command() for name in READ_ONLY)]
    done: set[str] = set()
    while ways := [entry for entry in ways if not parts(entry[1]) <= done]:
        line, settings = max(ways, key=lambda entry: len(parts(entry[1]) - done))
        try:
            execute(settings, tmp_path / f"run-{len(done)}")
        except InputError as error:
            pytest.fail(f"{line}: {error}")
        done |= parts(settings)


GUIDES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
ELSEWHERE = {"make demo": "tests/commands/demo", "make test": "these", "make docs": "itself", "torchrun": "tests/work"}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_block_of_a_guide_runs_or_says_why_not(page, capsys):
    """Python blocks of a page follow each other; commands of the shell are those that another test runs."""
    space: dict[str, object] = {}
    blocks = re.findall(r"(<!-- not run: .+ -->\n)?```(\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for reason, language, block in blocks:
        if language == "python" and not reason and page.name != "README.md":  # that one: tests/test_face.py
            source = block.replace('"builtin:tiny"', f'"{TINY}"').replace("block=64", "block=8").replace("=12,", "=8,")
            exec(compile(source, page.name, "exec"), space)
            assert capsys.readouterr().out
        elif language == "sh":
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                assert re.match(rf"(\.venv/bin/)?(villani|{'|'.join(ELSEWHERE)}) ?", line), line


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, on a Git host and on the site."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = [re.sub(r"\]\(.*?\)|[`*\[\\]", "", line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of every relative link of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    parts = [target.partition("#") for target in targets]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target.name}#{anchor}"


def test_questions_are_answered_two_links_from_the_readme():
    first = {target for target, _ in links(ROOT / "README.md")}
    questions = ROOT / "docs" / "questions.md"
    assert questions in first
    answers = re.findall(r"^\d+\. .*", questions.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(answers) == 10
    for answer in answers:
        path, _, anchor = re.findall(r"→ \[.+\]\((.+?)\)", answer)[0].partition("#")
        page = (questions.parent / path).resolve()
        assert page in first, page  # one link to the page, or two by way of the question
        assert not anchor or anchor in anchors(page)


def test_every_page_is_on_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in site, page


def test_what_code_cites_of_the_theory_is_there():
    """Sections by number, and what they name: lemmas, constants, certificates, reference rows."""
    theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^##+ (\d+(?:\.\d)?)", theory, re.MULTILINE))
    assert sections == {"0", "1", "2", "2.1", "2.2", "2.3", *map(str, range(3, 11))}
    cited = 0
    for file in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *PAGES]):
        text = file.read_text(encoding="utf-8")
        for number in re.findall(r"§\s?(\d+(?:\.\d)?)", text):
            assert number in sections, f"{file}: §{number}"
            cited += 1
        names = re.findall(r"(?:Lemma|Theorem) [A-E]\b|\b(?:CE[12]|R[12]|C10|[CT][1-9]\d?|c[1-4])(?=[),;:.]? )", text)
        for name in {name for name in names if "THEORY.md" in text}:
            assert re.search(rf"\b{name}\b", theory), f"{file}: {name}"
        for part in re.findall(r"§5 ?\((c?[a-e1-4′″]+)\)", text):
            assert f"({part})" in theory, f"{file}: §5({part})"
    assert cited > 129
