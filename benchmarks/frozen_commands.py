"""What users of the command line see, recorded from one version of villani and held against another.

    PYTHONPATH=src python benchmarks/frozen_commands.py record DIR
    python benchmarks/frozen_commands.py compare OLD NEW [--allow FILE]
    PYTHONPATH=src python benchmarks/frozen_commands.py open-old OLD

The program is a black box: `PYTHON -m villani …` (`--python`, default: this one) with the sources that PYTHONPATH
names and little else of the environment, since last digits depend on variables of BLAS; for the same reason both
records should come from one machine. `record` calls what frozen_cases.toml lists: every command at a tiny size,
`report` of its run, its rerun command from the record (for people, into the same run), `--help`, and bad input. DIR
then has frozen.jsonl and the run folders. `compare` prints each difference, `.case.path: old → new`, and exits with 1
if there are any; what varies from run to run (VARIES, WORDS) is left out. FILE has differences that are meant:
`[[allow]]` tables with `pattern`, a regular expression that is looked for in the printed line, and `reason`.
`open-old` has the present program write the pages of OLD's runs again. `--only REGEX` keeps to cases of such names.
"""

import argparse
import difflib
import hashlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

CASES = Path(__file__).with_name("frozen_cases.toml")
# What varies. Figures of JSON and TOML by their path; then words in text.
VARIES = re.compile(r"cost\.(\w*seconds\w*|peak_memory_bytes|parts\..*)$|(versions|records)\.villani$")
WORDS = [
    (re.compile(r"\d\d:\d\d:\d\d"), "CLOCK"),
    (re.compile(r"^(?:[a-z]+ \d+\.\d(?:, |$)){3,}"), "PARTS"),
    (re.compile(r"villani \d+\.\d+\.\d+\S*(?=[\s,<]|$)"), "villani VERSION"),
    (re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(·10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)? (s|min|h|KiB|MiB|GiB)\b"), "SIZE"),
    (re.compile(r"python\S* -m villani"), "villani"),
]
OPTION = re.compile(r"^\s*[│|*]?\s*(?:-\w,?\s+)?(--[a-z][\w-]*(?:[,/ ]+--[a-z][\w-]*)*)")


class Program:
    """One version of villani, called in a folder."""

    def __init__(self, python: str, folder: Path) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        kept["PYTHONPATH"] = str(Path(os.environ.get("PYTHONPATH", "src")).resolve())
        fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        self.environment, self.python, self.folder = kept | fixed, python, folder

    def call(self, words: list[str], folder: Path | None = None) -> dict[str, Any]:
        done = subprocess.run([self.python, "-m", "villani", *words], cwd=folder or self.folder, env=self.environment,
                              capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL)  # fmt: skip
        out, err = self.general(done.stdout), self.general(done.stderr)
        if "Traceback" in err:
            err = f"a traceback: {err.rstrip().splitlines()[-1]}"
        return {"argv": words, "exit": done.returncode, "stdout": content(out), "error": (err.splitlines() or [""])[-1]}

    def read(self, path: Path) -> str:
        return self.general(path.read_text(encoding="utf-8") if path.is_file() else "")

    def general(self, text: str) -> str:
        return text.replace(str(self.folder), "FOLDER")


def content(text: str, read: Callable[[str], Any] = json.loads) -> Any:
    try:
        return read(text)
    except ValueError:
        return text.splitlines()


def options_of(program: Program, command: str) -> dict[str, Any]:
    """From the names of options in a --help to their choices and default, however it is laid out."""
    case = program.call([*command.split(), "--help"])
    blocks, name = dict[str, str](), None
    for line in case["stdout"]:
        if found := OPTION.match(line):
            name = " ".join(sorted(re.findall(r"--[a-z][\w-]*", found[1])))
        if name is not None:
            blocks[name] = f"{blocks.get(name, '')} {line.strip(' │|')}"
    options = {name: shown(re.sub(r"(?<=\w-) (?=\w)", "", text)) for name, text in sorted(blocks.items())}
    return {"exit": case["exit"], "options": options}


def shown(text: str) -> str:
    choices = re.search(r"(?:[<{\[]|choices: )([\w-]+(?:[|,] ?[\w-]+)+)(?:[>}\]]|$)", text)
    default = re.search(r"[\[(]default: ([^\])]*)[\])]", text)
    parts = [f"choices {'|'.join(sorted(re.split('[|, ]+', choices[1])))}"] if choices else []
    return "; ".join(parts + ([f"default {' '.join(default[1].split())}"] if default else []))


def rows_of(table: re.Match[str]) -> str:
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", table[0], re.S)]
    times = [place for place, name in enumerate(rows[0]) if name.endswith("seconds")]
    body = [["VARIES" if place in times else cell for place, cell in enumerate(row)] for row in rows[1:]]
    return "\n".join(" | ".join(row) for row in [rows[0], *body])


def page_of(text: str) -> dict[str, Any]:
    """What a page says: its text by lines, and the data of its pictures."""
    script = r"<(script|style)([^>]*)>(.*?)</\1>"
    figures = [json.loads(found[3]) for found in re.finditer(script, text, re.S) if "application/json" in found[2]]
    text = re.sub(r"<table.*?</table>", rows_of, re.sub(script, "", text, flags=re.S), flags=re.S)
    lines = html.unescape(re.sub(r"<[^>]+>", "\n", text)).splitlines()
    return {"text": [line.strip() for line in lines if line.strip()], "figures": figures}


def run_of(program: Program, words: list[str], named: str | None, rerun: bool) -> dict[str, Any]:
    """A command that leaves a run, its page written again, and its rerun command."""
    runs = program.folder / "runs"
    before = set(os.listdir(runs))
    case = program.call([*words, *(["--run", f"runs/{named}"] if named else []), "--json"])
    made = case["made"] = sorted(set(os.listdir(runs)) - before)
    if case["exit"] or len(made) != 1:
        return case
    folder, page, where = runs / made[0], runs / made[0] / "report.html", f"runs/{made[0]}"
    case["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    raw = program.read(folder / "records.json")
    same = re.sub(r'"villani": ?"[^"]*"', "", raw).encode()
    case["records"], case["bytes"] = content(raw), hashlib.sha256(same).hexdigest()
    case["settings"] = content(program.read(folder / "settings.toml"), tomllib.loads)
    case["page"] = page_of(program.read(page))
    page.unlink(missing_ok=True)
    case["report"] = program.call(["report", where])
    case["report"]["same page"] = page.is_file() and page_of(program.read(page)) == case["page"]
    if rerun:
        command = (case["stdout"].get("provenance") or {}).get("command")
        case["rerun"] = program.call([*(shlex.split(command)[1:] if command else words), "--run", where])
        case["rerun"]["same records"] = program.read(folder / "records.json") == raw
    page.unlink(missing_ok=True)
    return case


def prepare(folder: Path) -> None:
    (folder / "runs").mkdir(parents=True)
    words = " ".join(f"The {k} quick foxes jump over {k * k % 97} naïve dogs — again." for k in range(120))
    toml = "temperature = [1.0"
    texts = {"words.txt": words, "empty.txt": "", "bad.toml": f"{toml}]\ncolour = 3\n", "broken.toml": f"{toml}\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def spoil(folder: Path) -> None:
    """Witnesses that nobody should believe: other numbers under an honest head, and half a file."""
    witness = bytearray((folder / "runs/audit-witness/witness.safetensors").read_bytes())
    (folder / "cut.safetensors").write_bytes(witness[: len(witness) // 2])
    witness[-64:] = bytes(64)
    (folder / "tampered.safetensors").write_bytes(witness)


def cases_of(program: Program) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every case by its name, and what records it; in an order in which each finds what it reads."""
    text = CASES.read_text(encoding="utf-8")
    for name, words in tomllib.loads(text)["short"].items():
        text = re.sub(rf"\b{name}\b(?! =)", lambda _, words=words: words, text)
    cases = tomllib.loads(text)
    for kind in ("runs", "unnamed_runs"):
        for name, words in cases[kind].items():
            named = name if kind == "runs" else None
            yield name, partial(run_of, program, shlex.split(words), named, name in cases["rerun"])
    for name, words in cases["plain"].items():
        yield f"plain {name}", partial(program.call, shlex.split(words))
    for name in cases["help"]:
        yield f"help {name}", partial(options_of, program, name)
    if (program.folder / "runs/audit-witness/witness.safetensors").is_file():
        spoil(program.folder)
    for first, ends in cases["refused"].items():
        for end in ends:
            words = f"{first} {end}".strip()
            yield f"refused {words}", partial(refused, program, shlex.split(words))


def record(python: str, target: Path, only: str) -> int:
    folder = target.resolve()
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{target}: is not empty; choose another folder")
    prepare(folder)
    start = spent_by_processes()
    with (folder / "frozen.jsonl").open("w", encoding="utf-8") as file:
        for name, make in cases_of(Program(python, folder)):
            if re.search(only, name):
                before, case = spent_by_processes(), make()
                file.write(json.dumps([name, case], ensure_ascii=False) + "\n")
                file.flush()
                print(f"{spent_by_processes() - before:6.1f} CPU s  exit {case['exit']}  {name}", flush=True)
    print(f"{spent_by_processes() - start:6.1f} CPU s in all")
    return 0


def spent_by_processes() -> float:
    return os.times().children_user + os.times().children_system


def refused(program: Program, words: list[str]) -> dict[str, Any]:
    folder = program.folder / "refused"
    folder.mkdir()
    case = program.call(words, folder) | {"left": sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    shutil.rmtree(folder)
    return case


def plain(path: str, value: Any) -> Any:
    """Without what varies: figures by their path, words by WORDS."""
    if isinstance(value, dict):
        return {name: plain(f"{path}.{name}", one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(f"{path}.{place}", one) for place, one in enumerate(value)]
    if value is not None and VARIES.search(path):
        return "VARIES"
    if isinstance(value, str):
        for pattern, word in WORDS:
            value = pattern.sub(word, value)
    return value


def differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in old or name not in new:
                yield f"{path}.{name}: " + ("only new" if name not in old else "only old")
            else:
                yield from differences(f"{path}.{name}", old[name], new[name])
        if [name for name in old if name in new] != [name for name in new if name in old]:
            yield f"{path}: the same fields in another order"
    elif isinstance(old, list) and isinstance(new, list) and all(isinstance(x, str) for x in [*old, *new]):
        for line in list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:]:
            if not line.startswith("@@"):
                yield f"{path}: {'old' if line[0] == '-' else 'new'}: {line[1:]}"
    elif isinstance(old, list) and isinstance(new, list):
        yield from differences(path, dict(enumerate(old)), dict(enumerate(new)))
    elif repr(old) != repr(new):
        yield f"{path}: {str(old)[:300]} → {str(new)[:300]}"


def cases_in(folder: Path, only: str) -> dict[str, Any]:
    with (folder / "frozen.jsonl").open(encoding="utf-8") as file:
        cases = dict(json.loads(line) for line in file)
    return {name: case for name, case in cases.items() if re.search(only, name)}


def compare(old: Path, new: Path, allow: Path | None, only: str) -> int:
    one, other = (plain("", cases_in(folder, only)) for folder in (old, new))
    rules = tomllib.loads(allow.read_text(encoding="utf-8"))["allow"] if allow else []
    met: Counter[int | None] = Counter()  # by rule; None: allowed by none
    for name in one.keys() & other.keys():
        if one[name].get("records") != other[name].get("records"):  # the fields say it; bytes say what they do not
            one[name].pop("bytes", None), other[name].pop("bytes", None)
    for line in differences("", one, other):
        rule = next((place for place, rule in enumerate(rules) if re.search(rule["pattern"], line)), None)
        met[rule] += 1
        print(line if rule is None else f"allowed ({rules[rule]['reason']}): {line}")
    print(*(f"allowed but never met: {rules[i]['pattern']}\n" for i in range(len(rules)) if not met[i]), sep="", end="")
    print(f"{met[None]} differences, {met.total() - met[None]} more that are allowed, in {len(one)} cases")
    return 1 if met[None] else 0


def open_old(python: str, old: Path, only: str) -> int:
    """Old run folders, copied, through the present `villani report`; 1 if any does not open."""
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        program = Program(python, Path(place).resolve())
        shutil.copytree(old / "runs", program.folder / "runs")
        for name, case in ((name, case) for name, case in cases_in(old, only).items() if "page" in case):
            page = program.folder / "runs" / case["made"][0] / "report.html"
            done = program.call(["report", f"runs/{case['made'][0]}"])
            if done["exit"] or not page.is_file():
                failed += 1
                print(f"{name}: FAILS, exit {done['exit']}: {done['error']}")
            else:
                lines = sum(1 for _ in differences("", plain("", case["page"]), plain("", page_of(program.read(page)))))
                print(f"{name}: opens, {lines} lines of the page differ")
    print(f"{failed} do not open")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["record", "compare", "open-old"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--only", default="", help="cases whose names match")
    parser.add_argument("--allow", type=Path)
    asked = parser.parse_args()
    if len(asked.folders) != (2 if asked.do == "compare" else 1):
        parser.error("compare takes two folders, the others one")
    if asked.do == "compare":
        return compare(*asked.folders, asked.allow, asked.only)
    return (record if asked.do == "record" else open_old)(asked.python, asked.folders[0], asked.only)


if __name__ == "__main__":
    sys.exit(main())
