"""The interpreter of traced graphs, and which analysis has a rule for which operation of which architecture."""

import gc
import weakref

import pytest
import torch
import transformers

from villani.criteria import degree_rules, enclosures, operations, shifts
from villani.criteria.patterns import depends_on, is_floating
from villani.curvature import rules
from villani.objective import decomposition
from villani.objective.graph import trace_loss
from villani.objective.interpret import Analysis, Evaluation, Table, execute, interpret, values_of
from villani.objective.objective import Objective

aten = torch.ops.aten
TABLES = {
    "taylor": rules.RULES,
    "degrees": degree_rules.RULES,
    "ranges": enclosures.RULES,
    "shifts": shifts.RULES,
    "smoothness": operations.RULES,
}
SIZES = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
ARCHITECTURES = {  # which together have all operations of the thirteen kinds that were looked at
    "GPT2": {"model": "GPT2LMHeadModel"},
    "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 2},
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "Bloom": {},
    "OPT": {"ffn_dim": 12, "word_embed_proj_dim": 8},
    "Mamba": {"state_size": 2},
    "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1, "num_key_value_heads": 1},
}
FUSED = ("GPT2", "Mixtral")  # traced with sdpa too


def traced(kind, attention):
    given = {**SIZES, **ARCHITECTURES[kind]}
    if kind == "GPTNeo":
        del given["num_hidden_layers"], given["num_attention_heads"]
    model = getattr(transformers, given.pop("model", f"{kind}ForCausalLM"))
    config = getattr(transformers, f"{given.pop('config', kind)}Config")(**given)
    config._attn_implementation = attention
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = Objective(model(config), torch.randint(0, 11, (1, 1, 5)))
    return trace_loss(objective, next(objective.batches(0)))


def reached(graph):
    """The operations that give real numbers which depend on θ."""
    moved = depends_on(graph)
    return {str(n.target): n.target for n in graph.nodes if n in moved and n.op == "call_function" and is_floating(n)}


CLOSED_FORM = "the head and its cross-entropy are integrated in closed form (curvature/head.py)"
CURVED = "not linear: a shift is not carried, and nothing is proved"
GAPS = {
    ("aten.cross_entropy_loss.default", "taylor"): CLOSED_FORM,
    **{(f"aten.{name}", "shifts"): CURVED for name in (
        "exp.default", "gelu.default", "pow.Tensor_Scalar", "relu.default", "rsqrt.default", "silu.default",
        "softplus.default", "tanh.default",
    )},
}  # fmt: skip
"""(operation, analysis) → why no rule is there."""


def test_an_operation_that_an_analysis_does_not_know_is_a_gap_with_a_reason(capsys):
    occurring, where = {}, {}
    for kind in ARCHITECTURES:
        for attention in ["eager", "sdpa"] if kind in FUSED else ["eager"]:
            for name, operation in reached(traced(kind, attention)).items():
                occurring[name] = operation
                where.setdefault(name, set()).add(kind)
    missing = {(n, a) for n, operation in occurring.items() for a, t in TABLES.items() if t.rule(operation) is None}
    lines = [f"{'':34}" + "".join(f"{a:>12}" for a in TABLES) + "   first of"]
    for name in sorted(occurring):
        marks = "".join(f"{'gap' if (name, a) in missing else 'x':>12}" for a in TABLES)
        lines.append(f"{name:34}{marks}   {len(where[name])}: {min(where[name])}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert len(occurring) > 30
    assert missing == set(GAPS), sorted(missing ^ set(GAPS))


def test_tables_name_operations_that_exist_and_name_each_once():
    for table in (*TABLES.values(), decomposition.TABLE):
        for operation in table:
            if isinstance(operation, str):
                namespace, name, overload = operation.split(".")
                assert namespace != "aten", f"{operation} is known on import: expected torch.ops.{operation}"
                assert name
                assert overload
            else:
                assert callable(operation)
    with pytest.raises(ValueError, match=r"aten.exp.default has two rules"):
        Table(("a", [aten.exp.default]), ("b", [aten.sin.default, aten.exp.default]))


def test_an_operation_that_torch_learns_of_later_is_found_by_its_name():
    table = Table(("late", ["custom.later.default"]), ("early", [aten.exp.default]))
    assert table.rule(aten.exp.default) == "early"
    assert table.rule(aten.sin.default) is None

    class Later:
        def __str__(self):
            return "custom.later.default"

    assert table.rule(Later()) == "late"


class Graph:
    """y = exp(w)·x + 2·Σ exp(w), by hand."""

    def __init__(self):
        graph = torch.fx.Graph()
        self.w, self.x, self.unused = (graph.placeholder(name) for name in ("w", "x", "unused"))

        def call(name, target, *arguments, **options):
            return graph.create_node("call_function", target, arguments, options, name)

        self.e = call("exp", aten.exp.default, self.w)
        self.p = call("mul", aten.mul.Tensor, self.e, self.x)
        self.sum = call("total", aten.sum.default, self.e)
        self.y = call("add", aten.add.Tensor, self.p, self.sum, alpha=2)
        self.nodes, self.parameters = tuple(graph.nodes), {self.w: 0}


class Depth(Analysis):
    """How many operations lie below; of a multiplication, as its rule says, 100 more."""

    table = Table((lambda below: below + 100, [aten.mul.Tensor]))

    def input(self, node):
        return 0

    def literal(self, argument):
        return 0

    def apply(self, rule, node, arguments, options):
        return rule(self.unknown(node, arguments, options))

    def unknown(self, node, arguments, options):
        return 1 + max(*arguments, *options.values(), 0)


def test_values_follow_the_rules_and_the_answer_to_what_has_none():
    graph = Graph()
    steps = [(node.name, depth) for node, depth in interpret(graph, Depth())]
    assert steps == [("w", 0), ("exp", 1), ("x", 0), ("mul", 102), ("total", 2), ("add", 103)]
    assert values_of(graph, Depth(), {graph.y, graph.e}) == {graph.e: 1, graph.y: 103}


def test_what_is_still_asks_no_rule():
    class OfX(Depth):
        """None where x does not matter."""

        def input(self, node):
            return 0 if node.name == "x" else None

        def literal(self, argument):
            return None

        def depends(self, node, arguments, options):
            return any(a is not None for a in arguments)

        def still(self, node, arguments, options):
            return None

        def unknown(self, node, arguments, options):
            return 1 + max(a for a in arguments if a is not None)

    assert {n.name: d for n, d in interpret(Graph(), OfX())} == {
        "w": None, "exp": None, "x": 0, "mul": 101, "total": None, "add": 102,
    }  # fmt: skip


def test_evaluation_computes_and_recasts():
    graph = Graph()
    w, x = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0])
    [y] = values_of(graph, Evaluation({graph.w: w, graph.x: x}), {graph.y}).values()
    assert torch.equal(y, w.exp() * x + 2 * w.exp().sum())
    cast = graph.nodes[0].graph.call_function(aten._to_copy.default, (graph.y,), {"dtype": torch.float32})
    assert execute(cast, lambda _: y.double(), torch.float64).dtype == torch.float64
    assert execute(cast, lambda _: y.double(), None).dtype == torch.float32


def test_a_value_is_dropped_after_its_last_use():
    graph, alive = Graph(), weakref.WeakValueDictionary()

    class Watched(Evaluation):
        def apply(self, rule, node, arguments, options):
            gc.collect()
            self.seen.append((node.name, set(alive)))
            alive[node.name] = value = super().apply(rule, node, arguments, options)
            return value

    analysis = Watched({graph.w: torch.ones(2), graph.x: torch.ones(2)})
    analysis.seen = []
    for _ in interpret(graph, analysis):
        pass
    assert analysis.seen == [("exp", set()), ("mul", {"exp"}), ("total", {"exp", "mul"}), ("add", {"mul", "total"})]
