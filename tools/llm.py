"""The model client: one call to an OpenAI-compatible server, with a JSON schema that the server enforces.

Parts of a message with the key `entities` (see `prompts.template`) go to the server as input embeddings; logs and
traces have the part as it is, never the numbers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import httpx2
import openai
import torch
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_openai_messages
from langchain_openai import ChatOpenAI
from pydantic import PrivateAttr, SecretStr

from tools.answers import open_answers
from tools.entities import EntitySource, EntityTable, open_entities
from tools.errors import REASON_LIMIT, ServerError, ServerUnreachableError
from tools.models import weights_name

TOP_LOGPROBS = 8
"""Tokens told of each place: a few labels begin with few tokens."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and the model to ask there."""

    base_url: str
    model: str
    api_key: SecretStr
    timeout: float
    """Seconds for one call."""
    answers: Path | None = None
    """File of kept answers; None asks the server each time."""
    entities: EntitySource | None = None
    """What parts of entities are replaced with; None where prompts have none."""


class Token(NamedTuple):
    """One token of an answer."""

    text: str
    logprob: float
    top: Mapping[str, float]
    """Log-probabilities of the likeliest tokens in its place, before a schema forbids any."""


@dataclass(frozen=True)
class Completion:
    """One answer and what it cost."""

    text: str
    cut_off: bool
    """It ended at `max_tokens`, not by itself."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens: Sequence[Token] = ()
    """Where log-probabilities were asked for, and the server tells them."""


async def complete(
    endpoint: Endpoint,
    messages: Sequence[BaseMessage],
    schema: Mapping[str, Any],
    *,
    temperature: float,
    max_tokens: int,
    seed: int | None,
    run_name: str,
    metadata: Mapping[str, Any],
    logprobs: bool = False,
) -> Completion:
    """Ask for an answer that fits a JSON schema, or read it from `endpoint.answers` if it was asked before.

    An answer that is read has the cost of when it was made, and no trace span: no model was called.

    Args:
        endpoint: where to ask.
        messages: the conversation.
        schema: JSON schema that constrains decoding at the server.
        temperature: of sampling.
        max_tokens: bound of the answer.
        seed: of sampling, None to leave it to the server.
        run_name: name of the trace span.
        metadata: put on the trace span.
        logprobs: whether log-probabilities are wanted.

    Raises:
        ServerUnreachableError: no answer, a time-out or a failure of the server.
        ServerError: the server refused the request (4xx), or its answer is no chat completion.
    """
    table = await asyncio.to_thread(open_entities, endpoint.entities) if endpoint.entities else None
    store = await asyncio.to_thread(open_answers, endpoint.answers) if endpoint.answers else None
    sampling = (temperature, max_tokens, seed, *["logprobs"] * logprobs)
    key = await asyncio.to_thread(_key, endpoint.model, table, messages, schema, sampling) if store else ""
    if store and (kept := await asyncio.to_thread(store.get, key)):
        found = json.loads(kept)
        return Completion(**found | {"tokens": [Token(*token) for token in found.get("tokens", ())]})
    model = HybridChat(
        model=endpoint.model,
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        timeout=endpoint.timeout,
        max_retries=0,
        http_async_client=pooled_client(),
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        logprobs=logprobs or None,
        top_logprobs=TOP_LOGPROBS if logprobs else None,
        # In extra_body the client sends it as it is; as response_format it would parse the answer itself and raise
        # on one that was cut off, losing what it cost.
        extra_body={
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": run_name, "schema": schema, "strict": True},
            }
        },
    )
    if table is not None:
        model.send_embedded(await asyncio.to_thread(embed_parts, table, messages))
    started = time.perf_counter()
    try:
        message = await model.with_config(run_name=run_name, metadata=dict(metadata), tags=[run_name]).ainvoke(
            list(messages)
        )
    except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
        raise ServerUnreachableError(
            f"the model server at {endpoint.base_url} does not answer ({error}); "
            "see its log, or start one with `recgpt serve`"
        ) from error
    except (openai.OpenAIError, ValueError) as error:  # a 200 that holds an error is a ValueError of the client
        _require_embeds(endpoint, str(error))
        reason = str(error)[:REASON_LIMIT]
        raise ServerError(
            f"the model server at {endpoint.base_url} refused a request for {endpoint.model!r}: {reason}"
        ) from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # how the client meets a 200 of another form
        raise ServerError(
            f"the model server at {endpoint.base_url} answered a request for {endpoint.model!r} with what is no chat "
            f"completion ({str(error)[:REASON_LIMIT]}): see its log, or start one with `recgpt serve`"
        ) from error
    usage = message.usage_metadata or {"input_tokens": 0, "output_tokens": 0}
    completion = Completion(
        text=str(message.content),
        cut_off=message.response_metadata.get("finish_reason") == "length",
        prompt_tokens=usage["input_tokens"],
        completion_tokens=usage["output_tokens"],
        seconds=time.perf_counter() - started,
        tokens=_tokens(endpoint, message.response_metadata.get("logprobs")),
    )
    if store:
        await asyncio.to_thread(store.put, key, json.dumps(asdict(completion)))
    return completion


def _tokens(endpoint: Endpoint, logprobs: Mapping[str, Any] | None) -> list[Token]:
    try:
        return [
            Token(
                entry["token"], entry["logprob"], {other["token"]: other["logprob"] for other in entry["top_logprobs"]}
            )
            for entry in (logprobs or {}).get("content") or []
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ServerError(
            f"the model server at {endpoint.base_url} tells log-probabilities in another form ({error!r}): expected "
            f"token, logprob and the {TOP_LOGPROBS} top_logprobs of each place, as `recgpt serve` tells them"
        ) from error


def _key(
    model: str,
    table: EntityTable | None,
    messages: Sequence[BaseMessage],
    schema: Mapping[str, Any],
    sampling: tuple[float | int | str | None, ...],
) -> str:
    """Of all that an answer depends on; not of the server's address nor of what is only for traces."""
    content = [weights_name(model), convert_to_openai_messages(list(messages)), schema, sampling]
    if table is not None:
        content.append(table.version.digest)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class HybridChat(ChatOpenAI):
    """The client, sending entities as input embeddings where it has them.

    It replaces them in the body of the request, beneath callbacks and tracing.
    """

    _embedded: Mapping[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    def send_embedded(self, embedded: Mapping[tuple[str, ...], str]) -> None:
        """For the entities of each part its embeddings as they go over the wire, see `embed_parts`."""
        self._embedded = embedded

    def _get_request_payload(
        self,
        input_: LanguageModelInput,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,  # noqa: ANN401 (as in the class it extends)
    ) -> dict[str, Any]:
        payload = super()._get_request_payload(input_, stop=stop, **kwargs)
        payload["messages"] = [with_embeddings(message, self._embedded) for message in payload["messages"]]
        return payload


def with_embeddings(message: Mapping[str, Any], embedded: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    """A message of a request, its parts of entities replaced by input embeddings (vLLM's `prompt_embeds` parts)."""
    if not isinstance(message["content"], list):
        return dict(message)
    parts = [
        {"type": "prompt_embeds", "data": embedded[tuple(part["entities"])]} if "entities" in part else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def embed_parts(table: EntityTable, messages: Sequence[BaseMessage]) -> dict[tuple[str, ...], str]:
    """Input embeddings of each part of entities: base64 of a `torch.save`d tensor (n * tokens, width). Blocks."""
    parts = {tuple(part["entities"]) for message in messages for part in entity_parts(message)}
    table.add([entity for entities in parts for entity in entities])  # new ones all at once: the embedder is quicker
    found = {}
    for entities in parts:
        buffer = io.BytesIO()
        torch.save(table.vectors(entities), buffer)
        found[entities] = base64.b64encode(buffer.getvalue()).decode()
    return found


def entity_parts(message: BaseMessage) -> list[dict[str, Any]]:
    """The parts of a message that are entities."""
    content = message.content if isinstance(message.content, list) else []
    return [part for part in content if isinstance(part, dict) and "entities" in part]


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, openai.DefaultAsyncHttpxClient] = WeakKeyDictionary()


def pooled_client() -> openai.DefaultAsyncHttpxClient:
    """The connection pool of the running event loop: a pool that outlives its loop fails in the next one."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = openai.DefaultAsyncHttpxClient()
    return _clients[loop]


async def close_client() -> None:
    """Close and forget the running loop's pool, if it has one: at the end of a loop that isn't the process's last.

    The weak key alone doesn't: open connections hold their loop.
    """
    if client := _clients.pop(asyncio.get_running_loop(), None):
        await client.aclose()


@dataclass(frozen=True)
class PromptSize:
    """Length of a prompt beside what fits."""

    tokens: int
    window: int
    """The model's context window in tokens, prompt and answer together."""


CHARACTERS_A_TOKEN = 3.0
"""A careful estimate for servers without /tokenize: English runs at about 4, codes and other scripts lower."""


async def measure_prompt(endpoint: Endpoint, messages: Sequence[BaseMessage], default_window: int) -> PromptSize:
    """Count a prompt's tokens with vLLM's `/tokenize`; other servers have none, then estimate.

    Raises:
        ServerUnreachableError: no answer.
        ServerError: the prompt has entities, and the server was started without what takes them.
    """
    table = await asyncio.to_thread(open_entities, endpoint.entities) if endpoint.entities else None
    answer = await _tokenize(endpoint, messages, table)
    try:
        count = answer.raise_for_status().json()
        return PromptSize(int(count["count"]), int(count["max_model_len"]))
    except (httpx2.HTTPStatusError, ValueError, KeyError, TypeError):
        return PromptSize(_estimated_tokens(messages, table.version.tokens if table is not None else 0), default_window)


async def check_embeds(endpoint: Endpoint) -> None:
    """Find out whether a server reads hybrid prompts as the adaptor learnt to, before anything is asked of it.

    Raises:
        ServerUnreachableError: no answer.
        ServerError: it takes no entities, or not these, or puts something between the parts of a message, or has no
            `/tokenize` that tells.
        ModelFilesError: there is no adaptor for this model.
    """
    assert endpoint.entities
    table = await asyncio.to_thread(open_entities, endpoint.entities)
    entity: dict[str | Any, Any] = {"type": "text", "text": "[entity: milk]", "entities": ["milk"]}
    answer = await _tokenize(endpoint, [HumanMessage([entity])], table)
    if answer.is_error:
        raise ServerError(
            f"the model server at {endpoint.base_url} takes no input embeddings of {endpoint.entities.adaptor}: "
            f"{answer.status_code} {answer.text[:REASON_LIMIT]}; start one with `recgpt serve`, or set "
            "representation=text"
        )
    parts: list[str | dict[Any, Any]] = [{"type": "text", "text": text} for text in ("milk", "shake")]
    joined, one = [
        (await measure_prompt(endpoint, [HumanMessage(content)], 0)).tokens for content in (parts, "milkshake")
    ]
    if joined != one:
        raise ServerError(
            f"the model server at {endpoint.base_url} puts something between the parts of a message ({joined} tokens, "
            f"expected {one}), which no adaptor was trained on: start it with `recgpt serve`, which gives it a chat "
            "template that doesn't, or set representation=text"
        )


async def _tokenize(endpoint: Endpoint, messages: Sequence[BaseMessage], table: EntityTable | None) -> httpx2.Response:
    """What vLLM's `/tokenize` says of a prompt.

    Raises:
        ServerUnreachableError, ServerError: see `measure_prompt`.
    """
    url = endpoint.base_url.removesuffix("/").removesuffix("/v1") + "/tokenize"
    # Not `convert_to_openai_messages`, which drops the key `entities`.
    sent: list[dict[str, Any]] = [
        {"role": "system" if message.type == "system" else "user", "content": message.content} for message in messages
    ]
    if table is not None:
        embedded = await asyncio.to_thread(embed_parts, table, messages)
        sent = [with_embeddings(message, embedded) for message in sent]
    body = {"model": endpoint.model, "messages": sent}
    headers = {"Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
    try:
        answer = await pooled_client().post(url, json=body, headers=headers, timeout=endpoint.timeout)
    except httpx2.HTTPError as error:
        raise ServerUnreachableError(f"the model server at {endpoint.base_url} does not answer ({error!r})") from error
    _require_embeds(endpoint, answer.text if answer.is_client_error else "")
    return answer


def _require_embeds(endpoint: Endpoint, refusal: str) -> None:
    if endpoint.entities and "enable-prompt-embeds" in refusal:
        raise ServerError(
            f"the model server at {endpoint.base_url} was started without --enable-prompt-embeds, which hybrid "
            "prompts need: start it with `recgpt serve`, or set representation=text"
        )


def _estimated_tokens(messages: Sequence[BaseMessage], tokens_an_entity: int) -> int:
    """Of texts by their characters, of entities by their number where they go as embeddings."""
    characters, entities = 0, 0
    for message in messages:
        for part in message.content if isinstance(message.content, list) else [message.content]:
            if isinstance(part, dict) and "entities" in part and tokens_an_entity:
                entities += len(part["entities"])
            else:
                characters += len(part if isinstance(part, str) else part["text"])
    return round(characters / CHARACTERS_A_TOKEN) + entities * tokens_an_entity
