"""Log-probabilities of a step's labels: from the graph of its loss, or from its logits."""

from types import SimpleNamespace

import pytest
import torch

from tests.integrations.test_prequential import IDS, network
from villani.errors import InputError
from villani.integrations.label_scores import label_logs


@pytest.mark.parametrize("items", [None, 7])
def test_scores_of_the_graph_are_those_of_the_logits(items):
    labels = IDS.clone()
    labels[3, 2:] = -100
    output = network().train()(input_ids=IDS, labels=labels, **({"num_items_in_batch": items} if items else {}))
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    wanted = targets.flatten() >= 0
    expected = torch.log_softmax(output.logits.flatten(0, 1).double(), -1)[wanted]
    expected = expected.gather(1, targets.flatten()[wanted][:, None])[:, 0]
    graph = label_logs(output, targets)[wanted]
    logits = label_logs(SimpleNamespace(logits=output.logits, loss=None), targets)[wanted]
    shifted = targets.roll(1, 0)  # of which the loss is none
    other = label_logs(output, shifted)
    torch.testing.assert_close(graph.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-6)
    places = shifted.flatten().clamp(min=0)[:, None]
    torch.testing.assert_close(other, torch.log_softmax(output.logits.flatten(0, 1), -1).gather(1, places)[:, 0])


def test_logits_of_other_places_are_refused():
    output = SimpleNamespace(logits=torch.zeros(2, 3, 5), loss=None)
    with pytest.raises(InputError, match="logits for 6 places, of 8 tokens"):
        label_logs(output, torch.zeros(2, 4, dtype=torch.long))
