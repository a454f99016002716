"""The figures of `villani measure` beside those of plain torch and transformers code, for the same groups of tokens.

VILLANI_DATA=… python benchmarks/independent_figures.py path/to/SmolLM2-135M

Nothing of villani is imported: the command is run, and all that it says is worked out again here. Text becomes tokens,
blocks and groups by the rules that docs/measuring.md states, and a checksum says that they are the same. Of every group
the loss, the gradient and vᵀ∇²L v by a second backward pass, with the signs v of (seed, group, probe, tensor); then

- L, ⟨∇L, θ⟩ and vᵀ∇²L v, means over tokens;
- ‖∇L‖² as the U-statistic over groups, and with the groups as the whole data set, where it is a plain square;
- one orbit: W_V of a layer times R and W_O over R. The loss, ⟨∇L, θ⟩, ‖θ‖², ‖∇L‖² and the exact part of Ψ at R are
  predicted from R = 1, and held against the command at the weights that were moved.

Prints a table and exits with 1 where a relative difference is above --tolerance. Of gradients of more than 262,139
entries the command keeps a random sketch: there its U-statistic may be off by four standard errors of the sketch,
√(2 tr(AGAG)/k) of G the inner products of gradients and A the pairs of groups.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PATH = Path(__file__).parents[1] / "docs" / "results" / "independent-figures.json"
GROUPS, PROBE = 0, 1  # what a stream of random numbers is for
IGNORED = -100
PAIR = (("v_proj.weight", 1), ("v_proj.bias", 1), ("o_proj.weight", -1), ("out_proj.weight", -1))  # powers of R


def random(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def blocks_of(text: str, folder: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, T) ids and labels of a text that is one document: consecutive blocks, the last one filled up."""
    name, _, split = text.partition(":")
    path = Path(os.environ["VILLANI_DATA"]) / f"ptb/ptb.{split or 'train'}.txt" if name == "ptb" else Path(text)
    ids = AutoTokenizer.from_pretrained(folder)(path.read_text(), add_special_tokens=False, verbose=False)["input_ids"]
    rows = [ids[start : start + length] for start in range(0, len(ids), length)]
    rows = [row for row in rows if len(row) > 1]
    filled = [row + [0] * (length - len(row)) for row in rows]
    labels = [row + [IGNORED] * (length - len(row)) for row in rows]
    return np.array(filled, dtype=np.int64), np.array(labels, dtype=np.int64)


@dataclass
class Groups:
    """Sums over each group's predicted tokens, with gradients on disk."""

    tokens: np.ndarray
    loss: np.ndarray
    dots: np.ndarray
    curvature: np.ndarray
    products: np.ndarray  # (P, G, G) of gradients, tensor by tensor

    def mean(self, sums: np.ndarray) -> float:
        """Σ sums / Σ tokens."""
        return unbiased(lambda g: sums[g].sum() / self.tokens[g].sum(), len(sums))

    def squared_norm(self, weights: np.ndarray) -> float:
        """‖∇L‖² with a weight for each tensor: the U-statistic over pairs of groups."""
        products = self._products(weights) * self._pairs()
        counts = np.outer(self.tokens, self.tokens) * self._pairs()
        return unbiased(lambda g: products[np.ix_(g, g)].sum() / counts[np.ix_(g, g)].sum(), len(self.tokens))

    def sketch_error(self, weights: np.ndarray, buckets: int) -> float:
        """Standard error that random signs in so many buckets give it."""
        turned = self._pairs() @ self._products(weights)
        counts = np.outer(self.tokens, self.tokens) * self._pairs()
        return math.sqrt(2 * np.trace(turned @ turned) / buckets) / counts.sum()

    def _products(self, weights: np.ndarray) -> np.ndarray:
        return np.einsum("p,pij->ij", weights, self.products)

    def _pairs(self) -> np.ndarray:
        return 1 - np.eye(len(self.tokens))


def unbiased(statistic: Callable[[np.ndarray], float], count: int) -> float:
    """A statistic of groups less its bias of order 1/G, by the jackknife."""
    groups = np.arange(count)
    without = [statistic(np.delete(groups, group)) for group in groups]
    return float(count * statistic(groups) - (count - 1) * np.mean(without))


def figures(model: Any, ids: np.ndarray, labels: np.ndarray, seed: int, scratch: Path, curved: bool) -> Groups:
    """Every group (B, T) of ids and labels."""
    tensors = list(model.parameters())
    tokens, losses, dots, curvature, files = [], [], [], [], []
    for group, (inputs, targets) in enumerate(zip(torch.from_numpy(ids), torch.from_numpy(labels), strict=True)):
        wanted = targets[:, 1:] != IGNORED
        logits = model(input_ids=inputs, use_cache=False).logits[:, :-1][wanted]
        loss = torch.nn.functional.cross_entropy(logits, targets[:, 1:][wanted], reduction="sum")
        gradient = torch.autograd.grad(loss, tensors, create_graph=curved)
        if curved:
            v = [signs(seed, group, index, t) for index, t in enumerate(tensors)]
            product = torch.autograd.grad(sum((g * s).sum() for g, s in zip(gradient, v, strict=True)), tensors)
            curvature.append(sum(inner(p, s) for p, s in zip(product, v, strict=True)))
            del v, product
        gradient = [g.detach() for g in gradient]
        tokens.append(int(wanted.sum()))
        losses.append(float(loss.detach()))
        dots.append(sum(inner(g, t) for g, t in zip(gradient, tensors, strict=True)))
        files.append(scratch / f"gradient-{group}.npy")
        np.save(files[-1], torch.cat([g.reshape(-1) for g in gradient]).numpy())
        del loss, logits, gradient
    products = np.zeros((len(tensors), len(files), len(files)))
    edges = np.cumsum([0, *(t.numel() for t in tensors)])
    stored = [np.load(file, mmap_mode="r") for file in files]
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        for i, a in enumerate(stored):
            for j, b in enumerate(stored[: i + 1]):
                one, other = (torch.from_numpy(np.array(x[start:stop])) for x in (a, b))
                products[index, i, j] = products[index, j, i] = inner(one, other)
    return Groups(*(np.array(x, dtype=float) for x in (tokens, losses, dots, curvature)), products)


def signs(seed: int, group: int, index: int, tensor: torch.Tensor) -> torch.Tensor:
    """The probe of a tensor: the bits of a stream, 0 as −1."""
    packed = np.frombuffer(random(seed, PROBE, group, 0, index).bytes((tensor.numel() + 7) // 8), dtype=np.uint8)
    bits = torch.from_numpy(np.unpackbits(packed, count=tensor.numel()))
    return bits.to(tensor.dtype).mul_(2).sub_(1).view(tensor.shape)


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    """In float64, a piece at a time."""
    pairs = zip(a.detach().reshape(-1).split(1 << 20), b.detach().reshape(-1).split(1 << 20), strict=True)
    return sum(float((x.double() * y.double()).sum()) for x, y in pairs)


def powers(names: Sequence[str], layer: int) -> dict[int, int]:
    """Of R, by the index of a tensor: of values and output of one layer's attention."""
    found = {
        index: power for index, name in enumerate(names) for ending, power in PAIR
        if f".{layer}." in name and name.endswith(ending)
    }  # fmt: skip
    if {*found.values()} != {1, -1}:
        raise SystemExit(f"no W_V and W_O in layer {layer}: known are {', '.join(ending for ending, _ in PAIR)}")
    return found


def measured(model: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What the command says."""
    words = [sys.executable, "-m", "villani", "measure", model, "--text", options.text, "--tokenizer", options.model]
    for name in ("groups", "sequences", "block", "seed", "weight_decay", "temperature", "threads"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    words += ["--special-tokens", "none", "--json", *more]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model and its tokenizer")
    parser.add_argument("--text", default="ptb:test", help="ptb:SPLIT, or a file of UTF-8")
    for name, default in (("groups", 4), ("sequences", 1), ("block", 128), ("seed", 0), ("threads", 1), ("layer", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=1e-3)
    parser.add_argument("--factor", type=float, default=4.0, help="R")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference")
    parser.add_argument("--output", type=Path, default=PATH)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ids, labels = blocks_of(options.text, options.model, options.block)
    size = options.sequences
    drawn = np.stack([random(options.seed, GROUPS, g).choice(len(ids), size, replace=False)
                      for g in range(options.groups)])  # fmt: skip
    apart = random(options.seed, GROUPS).permutation(len(ids))[: drawn.size].reshape(drawn.shape)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager").eval()
    names = [name for name, _ in model.named_parameters()]
    decay, s, factor = options.weight_decay, options.temperature, options.factor
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        plain = figures(model, ids[drawn], labels[drawn], options.seed, scratch, curved=True)
        whole = figures(model, ids[apart], labels[apart], options.seed, scratch, curved=False)
        norms = np.array([inner(t, t) for t in model.parameters()])
        moved = powers(names, options.layer)
        scale = np.array([factor ** moved.get(index, 0) for index in range(len(names))])
        with torch.no_grad():
            for index, tensor in enumerate(model.parameters()):
                tensor.mul_(scale[index])
        model.save_pretrained(scratch / "orbit")
        dimension = sum(t.numel() for t in model.parameters())
        del model
        runs = {name: measured(place, options, *more, "--run", str(scratch / name)) for name, place, more in (
            ("default", options.model, ()),
            ("probe", options.model, ("--trace", "hutchinson")),
            ("whole", options.model, ("--finite", "--probes", "2")),
            ("R", str(scratch / "orbit"), ()),
        )}  # fmt: skip
    for run, chosen in (("default", drawn), ("probe", drawn), ("whole", apart), ("R", drawn)):
        checksum = hashlib.sha256(ids[chosen].tobytes() + labels[chosen].tobytes()).hexdigest()
        if runs[run]["text"]["token_checksum"] != checksum:
            raise SystemExit("the tokens differ: give a text of one document, and a tokenizer that adds nothing")
    default, orbit = runs["default"], runs["R"]
    sketch = default["design"]["sketch"]
    plainly, along = np.ones(len(names)), scale**-2.0
    noise, noise_at_r = (4 * plain.sketch_error(w, sketch) if sketch else 0.0 for w in (plainly, along))
    exact = decay**2 * (scale**2 * norms).sum() / s - decay * dimension
    compared = [
        ("L", default["loss"]["value"], plain.mean(plain.loss), 0.0),
        ("‖∇L‖², unbiased", default["gradient_norm_squared"]["value"], plain.squared_norm(plainly), noise),
        ("‖∇L‖², the groups as the whole", runs["whole"]["gradient_norm_squared"]["value"],
         whole.products.sum() / whole.tokens.sum() ** 2, 0.0),
        ("⟨∇L, θ⟩", default["gradient_dot_parameters"]["value"], plain.mean(plain.dots), 0.0),
        ("vᵀ∇²L v", runs["probe"]["hessian_trace"]["value"], plain.mean(plain.curvature), 0.0),
        ("‖θ‖²", default["decayed_norm_squared"], norms.sum(), 0.0),
        ("L at R", orbit["loss"]["value"], plain.mean(plain.loss), 0.0),
        ("⟨∇L, θ⟩ at R", orbit["gradient_dot_parameters"]["value"], plain.mean(plain.dots), 0.0),
        ("‖∇L‖² at R, unbiased", orbit["gradient_norm_squared"]["value"], plain.squared_norm(along), noise_at_r),
        ("‖θ‖² at R", orbit["decayed_norm_squared"], (scale**2 * norms).sum(), 0.0),
        ("λ²‖θ‖²/s − λd at R",
         sum(orbit["psi"][0]["parts"][part]["value"] for part in ("decay_norm", "decay_laplacian")), exact, 0.0),
    ]  # fmt: skip
    rows = []
    print(f"{'':32} {'villani':>16} {'independent':>16} {'difference':>11} {'allowed':>9}")
    for name, own, independent, more in compared:
        difference, allowed = abs(own - independent) / abs(independent), options.tolerance + more / abs(independent)
        rows.append({"name": name, "own": own, "independent": float(independent), "difference": difference,
                     "allowed": allowed})  # fmt: skip
        print(f"{name:32} {own:16.9g} {independent:16.9g} {difference:11.1e} {allowed:9.1e}")
    unmoved = orbit["loss"]["value"] == default["loss"]["value"]
    print(f"the loss at R = {factor:g} is {'the same to the last bit' if unmoved else 'not the same to the last bit'}")
    record = {key: value for key, value in vars(options).items() if key not in ("model", "output")}
    record |= {"model": Path(options.model).name, "parameters": dimension, "tokens": int(plain.tokens.sum()),
               "sketch": sketch, "loss_bit_equal": unmoved, "torch": torch.__version__, "rows": rows}  # fmt: skip
    options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return int(any(row["difference"] > row["allowed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
