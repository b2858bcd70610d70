"""How answers are made: by the trainer itself, or by a vLLM server that takes the policy as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx

from tools.errors import ServerError
from tools.serving import load_adapter
from training.shared_prefix import SharedPrompts, sharing

ROLLOUT = "recgpt-rollout"
"""Name of the policy at a model server."""


class Grammars:
    """JSON schemas as grammars of a tokenizer: xgrammar's, as in the server."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:  # noqa: ANN401 (transformers')
        """Of a tokenizer, and how many logits its model has."""
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=[tokenizer.eos_token_id]
        )
        self._compiler = xgrammar.GrammarCompiler(info)

    def processor(self, schemas: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401 (xgrammar's)
        """For one call of `model.generate`: holds each answer to its schema, in compact JSON."""
        from xgrammar.contrib.hf import LogitsProcessor

        texts = [json.dumps(schema) for schema in schemas]
        compiled = {
            text: self._compiler.compile_json_schema(text, any_whitespace=False, separators=(",", ":"))
            for text in dict.fromkeys(texts)
        }
        return LogitsProcessor([compiled[text] for text in texts])


@contextmanager
def generating(model: Any, processor: Any) -> Iterator[None]:  # noqa: ANN401 (transformers' and xgrammar's)
    """For one call of `model.generate`: logits go through `processor`, and equal prompts are read once."""
    generate = model.generate

    def generated(*, input_ids: Any, attention_mask: Any, **others: Any) -> Any:  # noqa: ANN401
        prompts = SharedPrompts(model, input_ids[:, :-1], attention_mask[:, :-1])
        with sharing(model, prompts):
            return generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                past_key_values=prompts,
                logits_processor=[processor],
                **others,
            )

    model.generate = generated
    try:
        yield
    finally:
        del model.generate  # the class's again


@contextmanager
def merged(policy: Any) -> Iterator[None]:  # noqa: ANN401 (a PeftModel)
    """The active adapter's weights added to its base's, and afterwards these as they were, to the bit."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    weights = [layer.get_base_layer().weight.data for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.get_base_layer().weight.data = weight.clone()
        layer.merge(adapter_names=[policy.active_adapter])
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.unmerge()
            layer.get_base_layer().weight.data = weight  # a difference of sums is not what it was


def server_rollout(base_url: str, api_key: str, directory: Path) -> Callable[[list[Any], Any], dict[str, Any]]:
    """TRL's rollout function: a vLLM server on this machine answers, after it took the policy as it is now.

    The server is one with adapters on the same base model, see `recgpt serve --profile fp8`.

    Args:
        base_url: of the server.
        api_key: of the server.
        directory: where the policy is put for the server to read.
    """
    loaded, salt = -1, ""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:  # noqa: ANN401
        nonlocal loaded, salt
        if loaded != trainer.state.global_step:
            trainer.model.save_pretrained(str(directory))
            load_adapter(base_url, ROLLOUT, directory, api_key)
            loaded, salt = trainer.state.global_step, uuid4().hex
        tokenizer = trainer.processing_class
        ids = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            for prompt in prompts
        ]
        groups = [list(own) for _, own in groupby(range(len(prompts)), key=lambda place: trainer.asked[place])]
        with ThreadPoolExecutor(len(groups)) as pool:
            answered = pool.map(
                partial(_completions, base_url, api_key),
                [
                    {
                        "model": ROLLOUT,
                        "prompt": [ids[place] for place in own],
                        "structured_outputs": {"json": trainer.schema(trainer.asked[own[0]])},
                        "temperature": trainer.temperature,
                        "max_tokens": trainer.max_completion_length,
                        "logprobs": 0,
                        "return_token_ids": True,
                        # The server keeps what it read by the adapter's name: of this policy, not of earlier ones.
                        "cache_salt": salt,
                    }
                    for own in groups
                ],
            )
            choices = [choice for found in answered for choice in found]
        return {
            "prompt_ids": ids,
            "completion_ids": [choice["token_ids"] for choice in choices],
            "logprobs": [choice["logprobs"]["token_logprobs"] for choice in choices],
        }

    return rollout


def _completions(base_url: str, api_key: str, body: Mapping[str, object]) -> list[dict[str, Any]]:
    """Choices of one request, in the order of its prompts."""
    url = f"{base_url.rstrip('/')}/completions"
    try:
        answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {api_key}"}, timeout=600)
        answer.raise_for_status()
        choices: list[dict[str, Any]] = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    except httpx.HTTPStatusError as error:
        said = error.response.text[:300]
        raise ServerError(f"{url} refused the prompts of a step: {said}; it must be vLLM with adapters") from error
    except httpx.HTTPError as error:
        raise ServerError(f"no server answers at {url} ({error!r}); start one with `recgpt serve`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{url} gave no list of completions ({error!r}); it must be vLLM") from error
    if any(not choice.get("token_ids") or not choice.get("logprobs") for choice in choices):
        raise ServerError(f"{url} gave answers without token ids or log-probabilities; it must be vLLM 0.11 or newer")
    if len(choices) != (wanted := len(cast(list[Any], body["prompt"]))):
        raise ServerError(f"{url} gave {len(choices)} answers to {wanted} prompts")
    return choices
