#!/bin/sh
# The peers that benchmarks/trace_against_peers.py runs, each in an environment of its own under .peers/.
# Usage: sh benchmarks/peers/install.sh          (PYTHON=python3.11 by default)
#
# Peers come without their dependencies, which are named here instead: one of backpack's asks for torchvision, which
# would replace the pinned torch. Versions of everything else are those that this project is tested with.
set -eu
cd "$(dirname "$0")/../.."

environment() { # name, package==version ..., -- what it imports
    name=$1
    shift
    peer=""
    while [ "$1" != "--" ]; do
        peer="$peer $1"
        shift
    done
    shift
    "${PYTHON:-python3.11}" -m venv ".peers/$name"
    pip=".peers/$name/bin/pip --disable-pip-version-check install --quiet"
    $pip --constraint constraints.txt torch transformers safetensors numpy "$@"
    # shellcheck disable=SC2086
    $pip --no-deps $peer
    ".peers/$name/bin/python" -c "import torch; assert torch.__version__.startswith('2.13.0'), torch.__version__"
    echo "$name:$peer"
}

environment pyhessian PyHessian==0.1 --
environment eigenthings hessian-eigenthings==1.0.0a5 -- scipy tqdm
environment curvlinops curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 -- \
    scipy tqdm einops einconv linear-operator opt-einsum unfoldNd
