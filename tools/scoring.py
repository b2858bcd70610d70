"""The client of a served reward model (section 7): vLLM's pooling runner, which applies the sigmoid itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx2
from langchain_core.messages import BaseMessage, convert_to_openai_messages

from tools.errors import REASON_LIMIT, ServerError, ServerUnreachableError
from tools.llm import Endpoint, pooled_client


async def score(endpoint: Endpoint, candidates: Sequence[Sequence[BaseMessage]]) -> list[float]:
    """Rewards f in (0, 1) of candidates, each as the messages that the reward model reads.

    Raises:
        ServerUnreachableError: no answer.
        ServerError: the server refused, or is none of a reward model.
    """
    url = endpoint.base_url.removesuffix("/").removesuffix("/v1") + "/classify"
    headers = {"Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
    client = pooled_client()

    async def score_one(messages: Sequence[BaseMessage]) -> float:
        body = {"model": endpoint.model, "messages": convert_to_openai_messages(list(messages))}
        try:
            answer = await client.post(url, json=body, headers=headers, timeout=endpoint.timeout)
        except httpx2.HTTPError as error:
            raise ServerUnreachableError(
                f"the reward model's server at {endpoint.base_url} does not answer ({error!r})"
            ) from error
        try:
            (probability,) = answer.raise_for_status().json()["data"][0]["probs"]
            return float(probability)
        except (httpx2.HTTPStatusError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"{url} answered {answer.status_code} {answer.text[:REASON_LIMIT]!r}, expected one score: serve a "
                "reward model there, for example with `recgpt serve --model runs/train/reward/adapter`"
            ) from error

    return list(await asyncio.gather(*(score_one(messages) for messages in candidates)))
