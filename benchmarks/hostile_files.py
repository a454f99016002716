"""Thousands of damaged files through the commands that read them: tracebacks, code run, writes outside the run folder.

    python benchmarks/hostile_files.py --count 2400 --output docs/results/hostile-files.json

Every input is damage from a seed (`tests/damage.py`), read as a user would have villani read it, in this process.
Python tells of every file that is opened for writing, every process, every connection and everything unpickled; a
canary lies in every checkpoint. What is counted is in the output: exit codes by kind, and what should never happen.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tests.damage import VALUES, damage_ledger, damaged_bytes, damaged_json

from villani.cli import main as villani
from villani.commands.audit.settings import AuditSettings
from villani.commands.measure.settings import MeasureSettings
from villani.commands.paper.settings import read_settings
from villani.commands.running import execute
from villani.errors import InputError
from villani.inputs.models import load_model
from villani.work import foreign

TINY = "builtin:tiny?layers=1&width=8&context=32"
SIZES = [value for value in VALUES if not isinstance(value, int) or value < 100]  # that a machine can hold
SHARES = {"witness": 5, "ledger": 5, "records": 5, "checkpoint": 3, "tokenizer": 1, "study": 4, "vector": 1}
RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "sqlite3.connect"}


class Watch:
    """What this process does, from Python's audit events, while it is on."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = os.fspath(allowed.resolve())
        self.on = False
        self.code: list[str] = []
        self.writes: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in RUNS or (event == "exec" and getattr(arguments[0], "co_filename", "").startswith(self.allowed)):
            self.code.append(f"{event} {arguments!r}"[:200])
        elif event == "open":
            path, mode, flags = arguments
            writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._changed(event, path)
        elif event in CHANGES:
            for path in arguments[:2]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._changed(event, path)

    def _changed(self, event: str, path: Any) -> None:
        place = os.path.realpath(os.fsdecode(path))
        if place not in ("/dev/null", os.path.realpath(":memory:")) and not place.startswith(self.allowed):
            self.writes.append(f"{event} {place}")


def tried_out(watch: Watch) -> None:
    """A watch that sees nothing proves nothing: a write elsewhere, a process and code of the folder must be seen."""
    watch.on = True
    with tempfile.NamedTemporaryFile("w", dir=Path(watch.allowed).parent):
        pass
    subprocess.run(["true"], check=True)
    exec(compile("1", f"{watch.allowed}/evil.py", "exec"))
    watch.on = False
    if len(watch.writes) < 1 or len(watch.code) < 2:
        raise SystemExit("the watch does not see what it should")
    watch.code.clear()
    watch.writes.clear()


def command(*words: object) -> int:
    """The exit code of a command in this process; anything but an exit is raised."""
    sys.argv = ["villani", *map(str, words)]
    try:
        villani()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    raise AssertionError("a command ends with an exit")


def library(work: Callable[[], object]) -> int:
    """0 or 2, as the command line would say it."""
    try:
        work()
    except InputError as error:
        sys.stderr.write(f"villani: {error}\n")
        return 2
    return 0


class Inputs:
    """Honest files, made once, and how each is damaged and read."""

    def __init__(self, folder: Path) -> None:
        small = {"groups": 12, "sequences": 1, "block": 8, "threads": 1}
        asked = AuditSettings(model=TINY, decay="hf", rays=[], ray_groups=3, search=0, **small)  # type: ignore[arg-type]
        self.audit, _ = execute(asked, folder / "audit")
        self.run, _ = execute(MeasureSettings(model=TINY, groups=3, sequences=1, block=8), folder / "measure")
        self.exact = folder / "exact"
        command("exact", "log(1+exp(-3*w))", "--weight-decay", "0.1,0.2,0.4", "--digits", 4, "--run", self.exact)
        self.truth = (self.exact / "records.json").read_bytes()
        self.checkpoint = folder / "checkpoint"
        load_model(TINY).model.save_pretrained(self.checkpoint)
        canary = f"open({str(folder.parent / 'canary')!r}, 'w')\n"
        for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
            (self.checkpoint / name).write_text(canary)
        words = {"type": "WordLevel", "vocab": {"a": 0, "the": 1, "[UNK]": 2}, "unk_token": "[UNK]"}
        tokenizer = {"version": "1.0", "added_tokens": [], "model": words, "pre_tokenizer": {"type": "Whitespace"}}
        (self.checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
        self.study = (Path(foreign.__file__).parents[1] / "commands" / "paper" / "sizes" / "tiny.toml").read_text()

    def witness(self, at: Path, rng: random.Random) -> int:
        content = (self.audit / "witness.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        if rng.random() < 0.3:
            content = damaged_bytes(content, rng)
        else:
            header = json.loads(content[8 : 8 + length])
            claim = json.loads(header["__metadata__"]["claim"])
            if rng.random() < 0.3:
                claim["settings"] |= {"model": str(self.checkpoint), "trust_remote_code": True, "text": "/etc/hostname"}
            header["__metadata__"]["claim"] = damaged_json(json.dumps(claim), rng)
            text = json.dumps(header).encode()
            content = len(text).to_bytes(8, "little") + text + content[8 + length :]
        (at / "w.safetensors").write_bytes(content)
        return command("audit", "--replay", at / "w.safetensors", "--run", at / "run")

    def ledger(self, at: Path, rng: random.Random) -> int:
        shutil.copytree(self.exact, at / "run")
        damage_ledger(at / "run" / "ledger.sqlite", rng)
        code = command("exact", "log(1+exp(-3*w))", "--weight-decay", "0.1,0.2,0.4", "--digits", 4, "--run", at / "run")
        if code == 0 and (at / "run" / "records.json").read_bytes() != self.truth:
            raise AssertionError("other figures from a damaged ledger")
        return code

    def records(self, at: Path, rng: random.Random) -> int:
        source = rng.choice((self.run, self.exact, self.audit))
        content = (source / "records.json").read_text()
        whole = damaged_json(content, rng).encode() if rng.random() < 0.6 else damaged_bytes(content.encode(), rng)
        (at / "records.json").write_bytes(whole)
        if (source / "cost.json").exists():
            cost = (source / "cost.json").read_text()
            (at / "cost.json").write_text(damaged_json(cost, rng) if rng.random() < 0.2 else cost)
        return command("report", at)

    def checkpoint_(self, at: Path, rng: random.Random) -> int:
        shutil.copytree(self.checkpoint, at / "m")
        file = at / "m" / rng.choice(("config.json", "config.json", "model.safetensors"))
        if file.suffix == ".json" and rng.random() < 0.3:
            maps = {f"Auto{kind}": f"modeling_evil.{kind}" for kind in ("Config", "ModelForCausalLM", "Tokenizer")}
            file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": maps, "model_type": "evil"}))
        elif file.suffix == ".json" and rng.random() < 0.7:
            file.write_text(damaged_json(file.read_text(), rng, SIZES))
        else:
            file.write_bytes(damaged_bytes(file.read_bytes(), rng))
        asked = ("--tokenizer", "builtin", "--groups", 3, "--sequences", 1, "--block", 8)
        return command("measure", at / "m", *asked, "--run", at / "run")

    def tokenizer(self, at: Path, rng: random.Random) -> int:
        text = (self.checkpoint / "tokenizer.json").read_text()
        content = damaged_json(text, rng, SIZES).encode() if rng.random() < 0.7 else damaged_bytes(text.encode(), rng)
        (at / "tokenizer.json").write_bytes(content)
        asked = ("--tokenizer", at, "--groups", 3, "--sequences", 1, "--block", 8)
        return command("measure", TINY, *asked, "--run", at / "run")

    def study_(self, at: Path, rng: random.Random) -> int:
        text = self.study
        if rng.random() < 0.5:
            line = rng.choice([part for part in text.splitlines() if "=" in part and not part.startswith("#")])
            value = rng.choice(["nan", "-inf", "1e400", "-1", "''", "[]", "{}", "[" * 9999, "2" * 5000, "1979-05-27"])
            text = text.replace(line, f"{line.split('=')[0]}= {value}")
        content = damaged_bytes(text.encode(), rng) if rng.random() < 0.6 else text.encode()
        (at / "study.toml").write_bytes(content)
        return library(lambda: read_settings(at / "study.toml", None))  # read, not done: it would train

    def vector(self, at: Path, rng: random.Random) -> int:
        np.save(at / "v.npy", np.linspace(0, 1, 8))
        (at / "v.npy").write_bytes(damaged_bytes((at / "v.npy").read_bytes(), rng))
        return library(lambda: foreign.read_vector(at / "v.npy", "run again"))

    def readers(self) -> dict[str, Callable[[Path, random.Random], int]]:
        return {
            "witness": self.witness, "ledger": self.ledger, "records": self.records, "checkpoint": self.checkpoint_,
            "tokenizer": self.tokenizer, "study": self.study_, "vector": self.vector,
        }  # fmt: skip


def campaign(count: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="villani-hostile-"))
    (work / "tmp").mkdir()
    tempfile.tempdir = str(work / "tmp")  # folders that are shown to transformers, too
    os.chdir(work)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        inputs = Inputs(work / "honest")
    watch = Watch(work)
    tried_out(watch)
    codes: dict[str, Counter[str]] = {}
    faults: list[str] = []
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    began = time.process_time()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        at = work / "case"
        at.mkdir()
        told = io.StringIO()
        watch.on = True
        try:
            with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
                code = inputs.readers()[kind](at, random.Random(f"{seed}/{number}"))
            lines = [line for line in told.getvalue().splitlines() if line.startswith("villani:")]
            if code == 2 and len(lines) != 1:
                faults.append(f"{kind} {number}: {len(lines)} lines")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            code = -1
            faults.append(f"{kind} {number}: {''.join(traceback.format_exception(error))[-600:]}")
        watch.on = False
        codes.setdefault(kind, Counter())[str(code)] += 1
        shutil.rmtree(at)
    canary = (work / "canary").exists()
    os.chdir("/")
    shutil.rmtree(work)
    return {
        "inputs": count,
        "seed": seed,
        "exit_codes": {kind: dict(sorted(found.items())) for kind, found in codes.items()},
        "tracebacks_or_more_than_a_line": faults,
        "code_run": watch.code + (["canary"] if canary else []),
        "writes_elsewhere": sorted(set(watch.writes)),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    output = asked.output and asked.output.resolve()
    found = json.dumps(campaign(asked.count, asked.seed), indent=1, ensure_ascii=False)
    print(found)
    if output:
        output.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
