#!/bin/sh
# The fast tests on the ends of the ranges of pyproject.toml, each in an environment of its own:
#
#     sh benchmarks/versions.sh                          (all ends; each installs several GiB, tests take minutes)
#     sh benchmarks/versions.sh python3.13 2.14.1 5.24.0 (one: Python, torch, transformers)
#
# Environments stay in .versions/, so that a second call only runs the tests. Prints a line for each, and ends with 1 if
# any failed. Other packages are the newest that their ranges allow.
set -u
cd "$(dirname "$0")/.."

REQUIREMENTS='
import re, sys, tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
wanted = [*project["dependencies"], *extras["trainer"], *extras["lightning"], *extras["test"]]
fixed = {re.match(r"[\w-]+", word)[0] for word in sys.argv[1:]} | {"villani", "ruff", "mypy", "scipy-stubs"}
print(*sys.argv[1:], *(word for word in wanted if re.match(r"[\w-]+", word)[0] not in fixed), sep="\n")
'

try() {
    python=$1 torch=$2 transformers=$3
    place=.versions/$python-torch-$torch-transformers-$transformers
    if ! "$python" --version > /dev/null 2>&1; then
        echo "$python, torch $torch, transformers $transformers: not tried, no $python here"
        return 0
    fi
    if [ ! -f "$place/ready" ]; then
        "$python" -m venv "$place" &&
            "$place/bin/python" -c "$REQUIREMENTS" "torch==$torch" "transformers==$transformers" > "$place/requirements.txt" &&
            "$place/bin/pip" install --quiet --disable-pip-version-check --requirement "$place/requirements.txt" &&
            "$place/bin/pip" install --quiet --disable-pip-version-check --no-deps --editable . \
                curvlinops-for-pytorch backpack-for-pytorch &&
            touch "$place/ready" || { echo "$python, torch $torch, transformers $transformers: does not install"; return 1; }
    fi
    if "$place/bin/python" -m pytest -n 2 --dist loadfile -p no:cacheprovider \
        tests/objective tests/curvature tests/measurement tests/integrations tests/test_face.py > "$place/log" 2>&1; then
        echo "$python, torch $torch, transformers $transformers: $(tail -1 "$place/log")"
    else
        echo "$python, torch $torch, transformers $transformers: FAILED, see $place/log: $(tail -1 "$place/log")"
        return 1
    fi
}

if [ $# -eq 3 ]; then
    try "$@"
    exit
fi
failed=0
try python3.11 2.13.0 5.20.0 || failed=1
try python3.12 2.13.0 5.24.0 || failed=1
try python3.13 2.14.1 5.24.0 || failed=1
exit $failed
