"""What every command that looks at a model on a text begins with: model, text, objective, provenance.

Each is loaded once for all parts of a command, and kept with its `Work`.
"""

import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import torch

from villani.commands.blocks import Settings, StreamBlock, SubjectSettings
from villani.inputs.corpora import Corpus, load_corpus
from villani.inputs.groups import as_groups as as_groups
from villani.inputs.groups import vocabulary as vocabulary
from villani.inputs.models import LoadedModel, check_device, load_model
from villani.inputs.streaming import Streaming
from villani.inputs.text import Blocks, check_context, choose_groups, cut_corpus, text_record
from villani.inputs.tokenizers import Tokenizer, load_tokenizer
from villani.objective.objective import Objective
from villani.objective.origin import objective_record as objective_record
from villani.objective.origin import provenance_of as provenance_of
from villani.objective.parameters import check_decay
from villani.objective.weights import streamed_weights
from villani.statistics import Array
from villani.work import foreign
from villani.work.budget import Needs, Shape, available_memory, size
from villani.work.progress import duration
from villani.work.records import Provenance, TextRecord
from villani.work.work import Work

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
# what a ledger's rows do not depend on, or know better
_FREE = {"adapter", "decay", "device", "threads", "trust_remote_code", "allow_unused", "streamed", "memory"}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and a text, ready to be measured.

    Attributes:
        loaded: the model.
        text: which text.
        objective: the loss of the one on the other, with λ and mask.
        provenance: what determines the bits of a measurement, beside its settings.
        forward: tokens and seconds of a forward pass over one row, where one was timed.
    """

    loaded: LoadedModel
    text: TextRecord
    objective: Objective
    provenance: Provenance
    forward: tuple[int, float] | None = None

    @property
    def shape(self) -> Shape:
        """What time and memory follow from."""
        return Shape.of(self.loaded.model, self.forward)

    @property
    def facts(self) -> dict[str, Any]:
        """What every record of a subject has, by the names of its fields."""
        measured = objective_record(self.objective)
        return {"model": self.loaded.record, "objective": measured, "text": self.text, "provenance": self.provenance}

    def needs(
        self, settings: SubjectSettings, tokens: Mapping[str, float | None], *, vectors: float, kept: float = 0.0,
        graphs: float = 1.0,
    ) -> Needs:  # fmt: skip
        """What gradients over the tokens of stages take, with so many vectors of θ's size held and `kept` on disk.

        Where weights are read as they are used, a largest tensor takes the place of these vectors.
        """
        model, sizes = self.loaded.model, {"at_once": settings.at_once, "block": settings.block}
        shape = self.shape
        if streamed_weights(model) is None:
            return shape.work(tokens, **sizes, vectors=vectors, kept=kept, graphs=graphs, device=settings.device)
        largest = max(p.numel() * p.element_size() for p in model.parameters())
        return shape.streamed(tokens, **sizes, largest=largest, reading=_reading(model), graphs=graphs)


def timed_forward(objective: Objective) -> tuple[int, float]:
    """Tokens and seconds of a forward pass over one row: the quickest of ten, or of what begins within half a second.

    The first pass of a process makes what later ones find, which for a small model is most of its time.
    """
    row = next(objective.batches(0)).rows(0, 1)
    first, spent = time.perf_counter(), list[float]()
    with objective.evaluating(), torch.no_grad():
        while not spent or (len(spent) < 10 and time.perf_counter() - first < 0.5):
            began = time.perf_counter()
            float(objective.forward(row).loss)
            spent.append(time.perf_counter() - began)
    return row.ids.numel(), min(spent)


def load_subject(
    settings: SubjectSettings, work: Work, weight_decay: float, *, groups: int | None = None, reuse: bool = False,
    streamed: bool | Streaming = False,
) -> Subject:  # fmt: skip
    """Load the model and the text.

    Args:
        settings: what to load.
        work: told where the work is, and holds what was loaded.
        weight_decay: λ.
        groups: how many to cut, if not those of the settings.
        reuse: groups may come to more tokens than the text has.
        streamed: whether weights are read as they are used, see `streaming`.

    Raises:
        InputError: anything about the input that cannot be used.
    """
    begin(settings)
    corpus = load_text(settings.text, work)
    loaded = load(settings, work, streamed=streamed)
    tokenizer = load_tokenizer_of(settings, work, loaded)
    check_context(settings.block, loaded.record.context)
    blocks, _ = load_blocks(settings.text, settings, work, loaded)
    ids, labels = choose_groups(
        blocks, groups or settings.groups, settings.sequences, settings.seed, disjoint=settings.finite, reuse=reuse
    )
    text = text_record(corpus, tokenizer, blocks, ids, labels)
    work.stage("trying out the model")
    objective = Objective(
        loaded.model,
        as_groups(ids, labels),
        weight_decay=weight_decay,
        **settings.model_dump(include={"decay", "finite", "micro_tokens"}),
    )
    forward = None
    if not objective.streamed:  # whose graph was traced and run
        with foreign.reading(f"model {settings.model}", "mend its config.json, or give another model"):
            forward = timed_forward(objective)  # a configuration may be wrong in ways unforeseen
    work.stage("checking parameters")
    return Subject(loaded, text, objective, provenance_of(objective, settings.command(), settings.seed), forward)


def load_text(spec: str, work: Work) -> Corpus:
    """A text, read once."""

    def make() -> Corpus:
        work.stage(f"reading {spec}", "reading the text")
        return load_corpus(spec, data=work.data)

    return work.loaded(("text", spec), make)


def streaming(settings: StreamBlock, copies: float, device: str, work: Work) -> bool | Streaming:
    """Whether settings ask for weights that are read as they are used: where so many copies of θ do not fit.

    Process 0 decides for all: others may see less memory, and streamed weights round otherwise.
    """
    if settings.streamed != "auto":
        return settings.streamed == "yes"
    return lambda size: bool(work.team.broadcast(copies * size > available_memory(device, settings.memory)[0]))


def _reading(model: torch.nn.Module) -> float:
    """Seconds to read all of θ, from how long its largest tensor takes."""
    weights = streamed_weights(model)
    assert weights is not None
    name, tensor = max(model.named_parameters(), key=lambda p: p[1].numel())
    began = time.perf_counter()
    weights[name].sum()
    return (time.perf_counter() - began) * sum(p.numel() for p in model.parameters()) / tensor.numel()


def load(
    settings: Any, work: Work, model: str | None = None, *, train: bool = False, streamed: bool | Streaming = False
) -> LoadedModel:
    """The model that settings name, or another one with their dtype and device, loaded once, at its own weights.

    Args:
        settings: which model, and how.
        work: holds what was loaded.
        model: instead of that of the settings; of such models the last one is held.
        train: whether its weights are going to be changed: then a copy is kept, and whoever loads it next has it as it
            was, and whoever still holds it has not.
        streamed: whether weights are read as they are used.
    """
    spec = model or settings.model
    own = model in (None, getattr(settings, "model", None))
    options: dict[str, Any] = {
        "dtype": _DTYPES[getattr(settings, "dtype", "float32")],
        "device": getattr(settings, "device", "cpu"),
        "trust_remote_code": getattr(settings, "trust_remote_code", False),
        "allow_unused": getattr(settings, "allow_unused", None),
        "adapter": getattr(settings, "adapter", None) if own else None,
    }

    def make() -> LoadedModel:
        work.stage(f"loading {spec}", "loading the model")
        loaded = load_model(spec, **options, streamed=streamed)
        if streamed_weights(loaded.model) is not None:
            total = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
            each = duration(max(_reading(loaded.model), 1.0))
            work.stage(f"streaming {spec}: {size(total)} of weights, read as they are used; a pass reads for {each}")
        return loaded

    key = ("model", spec, *options.values())
    if spec != getattr(settings, "model", spec):  # another start: one of them is held at a time
        for other in [name for name in work.shared if name[0] == "model" and name[1] not in (spec, settings.model)]:
            del work.shared[other]
            work.shared.pop(("start", other), None)
    loaded = work.loaded(key, make)
    state = [*loaded.model.parameters(), *loaded.model.buffers()]
    start = work.shared.get(("start", key))
    with torch.no_grad():
        if start is not None:
            for tensor, value in zip(state, start, strict=True):
                tensor.copy_(value)
        elif train:
            copies = work.shared["start", key] = [tensor.detach().clone() for tensor in state]
            loaded = replace(loaded, start=tuple(copies[: sum(1 for _ in loaded.model.parameters())]))
            work.shared[key] = loaded
    loaded.model.eval()
    return loaded


def load_tokenizer_of(settings: Any, work: Work, loaded: LoadedModel) -> Tokenizer:
    """The tokenizer of settings, or else of the model, loaded once."""
    spec = settings.tokenizer or loaded.tokenizer

    def make() -> Tokenizer:
        work.stage(f"loading the tokenizer {spec}", "loading the tokenizer")
        return load_tokenizer(spec, data=work.data, special_tokens=settings.special_tokens)

    return work.loaded(("tokenizer", spec, settings.special_tokens), make)


def load_blocks(spec: str, settings: Any, work: Work, loaded: LoadedModel) -> tuple[Blocks, Array]:
    """A whole text in blocks, and (M,) the document that each is of; read, tokenised and cut once."""
    corpus, tokenizer = load_text(spec, work), load_tokenizer_of(settings, work, loaded)
    known = vocabulary(loaded.model)

    def make() -> tuple[Blocks, Array]:
        work.stage(f"cutting {spec} into tokens", "cutting the text into tokens")
        return cut_corpus(corpus, tokenizer, settings.block, known)

    key = (spec, settings.tokenizer or loaded.tokenizer, settings.special_tokens, settings.block, known)
    return work.loaded(("blocks", *key), make)


def determining(
    settings: Settings, text: TextRecord, provenance: Provenance, free: AbstractSet[str] = frozenset(),
    streamed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What determines a ledger's rows: of the settings, all but those that are `free`; and the bits of θ and text.

    Weights that were `streamed` give other roundings.
    """
    own = settings.model_dump(mode="json", exclude=_FREE | free) | ({"streamed": True} if streamed else {})
    return own | {"token_checksum": text.token_checksum} | bits_of(provenance)


def bits_of(provenance: Provenance) -> dict[str, Any]:
    """θ, device, threads and versions, as a ledger has them."""
    own = provenance.model_dump(include={"parameter_checksum", "device", "threads"})
    return own | provenance.versions


def begin(settings: Any) -> None:
    """Set threads, and refuse options that no model could make right, before one is loaded.

    Raises:
        InputError: an unknown mask of what decays, or a device that is not there.
    """
    check_decay(getattr(settings, "decay", "all"))
    check_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def outputs(model: torch.nn.Module) -> int:
    """V: the rows of the output embedding, which may be more than a tokenizer's tokens."""
    causal: Any = model
    head = causal.get_output_embeddings()
    return int(causal.config.vocab_size if head is None else head.weight.shape[0])
