"""Hybrid prompts read in this process (section 2 of the report), as the server reads them: for training and measuring.

A prompt is a chat whose entities are parts of their own, see `prompts.template`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tools.adaptor import Adaptor
from tools.errors import ModelFilesError
from tools.models import template_of_parts

PLACEHOLDER = "<prompt_embeds>"
"""A token of its own while a prompt is tokenized, as in vLLM."""
SHORT = 512
"""Tokens up to which attention without fusion is the faster one on a CPU."""
IGNORED = -100
"""Label of what is not in the loss."""


@dataclass(frozen=True)
class Example:
    """A tokenized hybrid prompt with its answer."""

    ids: Tensor
    """Token ids (t,), `Reading.placeholder` where an entity's embeddings go."""
    answer: int
    """Where the answer begins."""
    entities: tuple[str, ...]
    """In the order of their places."""


class Reading:
    """Turns messages of parts into token ids, as the server does."""

    def __init__(self, path: str, tokens: int) -> None:
        """Load the tokenizer of a model directory or hub name.

        Raises:
            ModelFilesError: it has no chat template, or several.
        """
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._template = template_of_parts(path)
        if self._template is None:
            raise ModelFilesError(f"the tokenizer of {path} has several chat templates, hybrid prompts need one")
        self._tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
        self.placeholder = int(self._tokenizer.convert_tokens_to_ids(PLACEHOLDER))
        self.tokens = tokens

    def example(self, messages: Sequence[Any], answer: str) -> Example:
        """A prompt (messages of parts) and its answer, ended as the model ends its turn."""
        entities = [name for message in messages for name in _entities(message.content)]
        roles = {"system": "system", "human": "user"}
        conversation = [
            {"role": roles[message.type], "content": _with_places(message.content, self.tokens)} for message in messages
        ]
        prompt = self._tokenizer.apply_chat_template(
            conversation, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        before = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = self._tokenizer(answer + self._tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        return Example(torch.tensor([*before, *after]), len(before), tuple(entities))

    def title(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        found: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


class HybridReader(nn.Module):
    """The adaptor before a frozen LLM, which is no part of this module's weights and checkpoints."""

    def __init__(
        self,
        adaptor: Adaptor,
        llm: Any,  # noqa: ANN401 (a transformers model)
        placeholder: int,
        norm_penalty: float = 0.0,
    ) -> None:
        """Take an LLM whose parameters need no gradient.

        Args:
            adaptor: what learns.
            llm: reads its vectors.
            placeholder: the id in their places.
            norm_penalty: weight in training of the mean of `max(0, |z| / |e| - 1)^2`, with |e| the mean norm
                of the LLM's own input embeddings. Without it vectors grow to many times that norm: loud enough to
                teach the model how to answer, and in a long prompt they drown what stands around them.
        """
        super().__init__()
        self.adaptor = adaptor
        self.placeholder = placeholder
        self.norm_penalty = norm_penalty
        self._llm = (llm,)  # in a tuple: a module would be registered
        self._usual = float(llm.get_input_embeddings().weight.detach().float().norm(dim=1).mean())

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, embeddings: Tensor
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the answers' tokens.

        Args:
            input_ids: (b, t), `placeholder` where entities go.
            attention_mask: (b, t).
            labels: (b, t), `IGNORED` outside of answers.
            embeddings: text embeddings of the entities in the order of their places, (n, text).
        """
        wanted = labels[:, 1:] != IGNORED
        logits = self._logits(input_ids, attention_mask, embeddings, wanted)
        loss = cross_entropy(logits, labels[:, 1:][wanted])
        if self.training and self.norm_penalty and len(embeddings):
            excess = (self.adaptor(embeddings).norm(dim=-1) / self._usual - 1).relu()
            loss = loss + self.norm_penalty * excess.square().mean()
        return {"loss": loss}

    def log_probabilities(self, example: Example, embeddings: Tensor) -> Tensor:
        """Of every next token at each place of the answer, (answer, vocabulary)."""
        ids = example.ids[None]
        wanted = torch.zeros(ids.shape, dtype=torch.bool)[:, 1:]
        wanted[:, example.answer - 1 :] = True
        return self._logits(ids, torch.ones_like(ids), embeddings, wanted).log_softmax(dim=-1)

    def _logits(self, ids: Tensor, mask: Tensor, embeddings: Tensor, wanted: Tensor) -> Tensor:
        """After the wanted ones of all places but the last, (b, t - 1): (n, vocabulary)."""
        (llm,) = self._llm
        if ids.device.type == "cpu":  # the backward pass of the fused attention is slow there, but for long prompts
            llm.set_attn_implementation("eager" if ids.shape[1] <= SHORT else "sdpa")
        begin = self._common_beginning(ids, wanted)
        past = None
        if begin:
            with torch.no_grad():
                past = llm.model(input_ids=ids[:1, :begin], use_cache=True).past_key_values
            past.batch_repeat_interleave(len(ids))
        rest = ids[:, begin:]
        places = rest == self.placeholder
        inputs = llm.get_input_embeddings()(rest.masked_fill(places, 0))
        if len(embeddings):
            vectors = self.adaptor(embeddings).flatten(0, 1).to(inputs.dtype)
            inputs = inputs.masked_scatter(places[..., None], vectors)
        hidden = llm.model(
            inputs_embeds=inputs, attention_mask=mask, past_key_values=past, use_cache=past is not None
        ).last_hidden_state
        logits: Tensor = llm.lm_head(hidden[:, :-1][wanted[:, begin:]]).float()
        return logits

    def _common_beginning(self, ids: Tensor, wanted: Tensor) -> int:
        """How many places all rows begin with alike, before any entity and any wanted place.

        Nothing there depends on the adaptor: it is read once, and no gradient goes through it. Of the questions of
        self-perception that is a third.
        """
        alike = (ids == ids[:1]).all(dim=0) & (ids[0] != self.placeholder)
        alike[:-1] &= ~wanted.any(dim=0)
        alike[-1] = False
        return int(alike.long().cumprod(dim=0).sum())


def _entities(content: str | Sequence[str | Mapping[str, Any]]) -> list[str]:
    parts = [] if isinstance(content, str) else content
    return [name for part in parts if not isinstance(part, str) for name in part.get("entities", [])]


def _with_places(content: str | Sequence[str | Mapping[str, Any]], tokens: int) -> list[dict[str, str]]:
    """Parts of text with a placeholder for each input embedding of an entity."""
    texts = []
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            texts.append(part)
        elif "entities" in part:
            texts.append(PLACEHOLDER * tokens * len(part["entities"]))
        else:
            texts.append(part["text"])
    return [{"type": "text", "text": text} for text in texts]
