"""What a reader of a page may do next, by command, with the commands between backticks."""

STEPS = {
    "measure": (
        "To ask whether condition (iv) fails for this model, and above which s: `villani audit MODEL --text TEXT`.",
        "Where an interval is too wide: more `--groups`, or let it plan them, `--target-error 0.02`.",
        "To set two checkpoints, or two λ, side by side: `villani compare RUN RUN`.",
    ),
    "audit": (
        "Where a criterion is refuted, somebody else can evaluate the witness again: "
        "`villani audit --replay witness.safetensors`.",
        "Where nothing is refuted: more `--groups` narrow the bounds on s*, and `--search` looks at other weights.",
        "What λ does for this model in practice: `villani recommend MODEL --text TEXT`.",
    ),
    "spectrum": (
        "To hold a learning rate against the largest eigenvalue: `villani spectrum MODEL --learning-rate 0.1`.",
        "How far the eigenvalues of new text differ: `--held-out 8` evaluates the same vectors on fresh groups.",
        "How many directions count: `--density-probes 8` gives the density of all eigenvalues.",
    ),
    "certify": (
        "To let several settings compete, say how many there are beforehand: `--candidates`.",
        "Which λ to train with is another question: `villani recommend MODEL --text TEXT`.",
    ),
    "converge": (
        "Where it is not at equilibrium: more `--steps`, and several `--chains` from different starts.",
        "What the exact constants of a small potential are: `villani exact POTENTIAL`.",
    ),
    "exact": (
        "To see chains on the same potential beside its exact rates: `villani converge exact:POTENTIAL`.",
        "To vary one number: `--dimension 5,10,20`, or several values of `--weight-decay`.",
    ),
    "constants": (
        "To measure at the weights of a model, and not only by its shapes: `villani measure MODEL --text TEXT`.",
        "Whether the criteria behind such constants hold: `villani audit MODEL --text TEXT`.",
    ),
    "compare": (
        "Where a difference cannot be told apart from 0: measure both again on more groups of the same seed, which are "
        "then compared in pairs: `villani measure MODEL --groups 64 --seed 0`.",
    ),
    "recommend": (
        "Where several λ cannot be told apart: more `--seeds`, or take the one that is convenient.",
        "Where the best lies at an end of the grid: more `--weight-decay`, in the same run: what is trained stays.",
        "What a trained model is certified to reach: `villani certify MODEL --text TEXT`.",
    ),
    "study paper": ("Every part can be run alone: `villani measure`, `audit`, `spectrum`, `converge` or `certify`.",),
}  # fmt: skip
