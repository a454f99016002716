"""Whether a model counts positions in a padded row by itself, as OPT does from its mask and RoBERTa from its tokens."""

from typing import Any

import torch
from torch import nn

from villani.objective.evaluation import evaluating

_ALIKE = 1e-4  # of the largest logit


def counts_positions(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]) -> bool:
    """Whether the row without its padding gives the same logits as with it, of a model that shifted places do change.

    They do not change a rotary model, so that its places in padding are up to whoever gives them. A model that fails is
    one that does not count.

    Args:
        model: whose forward names `position_ids`.
        ids: (T,) a row with padding on the left.
        mask: (T,) 1 for its real tokens.
        options: of the forward.
    """
    tensor = next(iter(model.parameters()))
    ids, mask = ids[None].to(tensor.device), mask[None].to(tensor.device)
    real = mask[0] != 0
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    shifted = (mask.cumsum(dim=1) - 1).clamp(min=0)  # either may be the model's own: RoBERTa's are at 2 and on
    try:
        with evaluating(model, tensor.device, fused=True), torch.no_grad():
            alone = model(input_ids=ids[:, real], **options).logits
            own = model(input_ids=ids, attention_mask=mask, **options).logits[:, real]
            first, second = (
                model(input_ids=ids, attention_mask=mask, position_ids=given, **options).logits[:, real]
                for given in (places, shifted)
            )
    except Exception:  # a forward fails in as many ways as there are models
        return False
    limit = _ALIKE * float(alone.abs().max())
    return float((own - alone).abs().max()) <= limit < float((first - second).abs().max())
