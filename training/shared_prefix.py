"""Prompts that several answers share are read once.

The answers of a group have one prompt, several times as long as they are. What the model makes of it (keys and values)
is the same for all, in the forward pass and in the backward pass, where its gradient is the sum of theirs; see Prefix
Grouper (arXiv 2506.05433).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import gcd
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

ATTENTION = "recgpt_shared_prompts"
"""Name of `_attend` in transformers, which finds attention functions by name."""


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


class _AnswerLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of answers alone, and those of their prompts beside them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Of n prompts: keys and values (n, heads, p, width)."""
        super().__init__()
        self.prompt_keys, self.prompt_values = keys, values

    def get_seq_length(self) -> int:
        """Tokens read so far, the prompt's among them."""
        return int(self.prompt_keys.shape[-2]) + int(super().get_seq_length())


class SharedPrompts(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """A cache for `generate` that holds a prompt once for all answers to it.

    `generate` copies and reads the whole cache with every token. With one prompt for eight answers, five times as long
    as they are, that is most of its time.
    """

    def __init__(self, model: Any, ids: Tensor, mask: Tensor) -> None:  # noqa: ANN401 (transformers')
        """Read prompts (n, p), see `read_prompts`; the answers to one stand together, as many of each."""
        super().__init__(config=model.config)
        _, runs = torch.unique_consecutive(torch.stack([ids, mask], dim=1), dim=0, return_counts=True)
        self.each = gcd(*runs.tolist())
        """Answers to one prompt."""
        read = read_prompts(model, ids[:: self.each], mask[:: self.each])
        self.layers = [_AnswerLayer(layer.keys, layer.values) for layer in read.layers]
        hidden = mask[:: self.each, None, None] == 0
        self.bias = torch.zeros(hidden.shape, device=ids.device).masked_fill(hidden, -torch.inf)
        """Added to what answers see of their prompts, (n, 1, 1, p): nothing of the padding."""


_prompts: ContextVar[SharedPrompts] = ContextVar("_prompts")


@contextmanager
def sharing(model: Any, prompts: SharedPrompts) -> Iterator[None]:  # noqa: ANN401 (transformers')
    """While it lasts, the model answers these prompts, a token at a time."""
    before, token = model.config._attn_implementation, _prompts.set(prompts)
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before
        _prompts.reset(token)


def _attend(
    module: Any,  # noqa: ANN401 (transformers')
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention of one token of each answer to its prompt and to the answer so far.

    Args:
        module: a layer's attention.
        query: (answers, heads of queries, 1, width).
        key: of the answers, (answers, heads, tokens, width); so many heads of queries share one of these.
        value: like `key`.
        attention_mask: none is made for an implementation that transformers doesn't know; an answer has no padding.
        scaling: of the logits.
        others: of no use here.
    """
    prompts = _prompts.get()
    layer = prompts.layers[module.layer_idx]
    (answers, heads, _, width), length = key.shape, layer.prompt_keys.shape[-2]
    shared, each = answers // prompts.each, prompts.each
    own = query.reshape(answers, heads, -1, width) * scaling
    # All queries to one prompt as one matrix: the prompt is read once for all of them.
    together = own.view(shared, each, heads, -1, width).transpose(1, 2).reshape(shared, heads, -1, width)
    of_prompt = together @ layer.prompt_keys.transpose(-1, -2) + prompts.bias.to(own.dtype)
    of_prompt = of_prompt.view(shared, heads, each, -1, length).transpose(1, 2).reshape(answers, heads, -1, length)
    logits = torch.cat([of_prompt, own @ key.transpose(-1, -2)], dim=-1)
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    to_prompt = weights[..., :length].view(shared, each, heads, -1, length).transpose(1, 2)
    found = to_prompt.reshape(shared, heads, -1, length) @ layer.prompt_values
    found = found.view(shared, heads, each, -1, width).transpose(1, 2).reshape(answers, heads, -1, width)
    found = found + weights[..., length:] @ value
    return found.reshape(answers, 1, -1, width), None


AttentionInterface.register(ATTENTION, _attend)


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
