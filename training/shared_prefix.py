"""Prompts that several answers share are read once.

The answers of a group have one prompt, several times as long as they are. What the model makes of it (keys and values)
is the same for all, in the forward pass and in the backward pass, where its gradient is the sum of theirs; see Prefix
Grouper (arXiv 2506.05433).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


def read_prompts(model: Any, ids: Tensor, mask: Tensor) -> DynamicCache:  # noqa: ANN401 (transformers')
    """Keys and values of n prompts, of which equal ones are read once, each token at its place in its own prompt.

    Args:
        model: of causal language.
        ids: tokens, padded on the left, (n, p).
        mask: 1 where there is a token, (n, p).
    """
    different, which = torch.unique(torch.stack([ids, mask]), dim=1, return_inverse=True)
    cache = DynamicCache(config=model.config)
    model(
        input_ids=different[0],
        attention_mask=different[1],
        position_ids=_places(different[1]),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    cache.batch_select_indices(which)
    return cache


def read_answers(model: Any, ids: Tensor, mask: Tensor, answers: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Log-probabilities of the tokens of answers, and the entropies of what they were drawn from, (n, answers) each.

    Args:
        model: with TRL's fused head, see `trl.trainer.utils.add_fused_lm_head`.
        ids: prompts, padded on the left, and answers, padded on the right, (n, p + answers).
        mask: 1 where there is a token, (n, p + answers).
        answers: longest answer, in tokens.
    """
    prompt = ids.size(1) - answers
    cache = read_prompts(model, ids[:, : prompt - 1], mask[:, : prompt - 1])
    # The prompt's last token tells the first of the answer.
    own = ids[:, prompt - 1 :]
    labels = own.masked_fill(mask[:, prompt - 1 :] == 0, -100)
    found = model(
        input_ids=own,
        attention_mask=mask,
        position_ids=_places(mask)[:, prompt - 1 :],
        past_key_values=cache,
        labels=labels,
        fused_lm_head=True,
    )
    return found.log_probs, found.entropy


def _places(mask: Tensor) -> Tensor:
    """Where each token stands among its own, as `generate` counts: padding on the left is nothing."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
