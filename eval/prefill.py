"""What a prompt costs the server before its first token: text beside hybrid, one, eight and many users at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import httpx
from langchain_core.messages import BaseMessage, SystemMessage

from eval.metrics import Estimate, estimate
from tools.llm import Endpoint, complete, measure_prompt

CONCURRENT = (1, 8, 32)
"""Users at a time."""
FREE_TEXT = {"type": "string"}
COUNTER = re.compile(r"^vllm:prefix_cache_(hits|queries)_total(?:\{[^}]*\})? ([0-9.e+]+)$", re.M)


@dataclass(frozen=True)
class Pass:
    """Some requests of one token each."""

    seconds: list[float]
    """Of each request."""
    wall: float
    hit_rate: float | None
    """Share of the prompts' tokens that the prefix cache had; None where the server does not tell."""


async def run_pass(endpoint: Endpoint, prompts: Sequence[Sequence[BaseMessage]], users: int, salt: str) -> Pass:
    """Send prompts for one token of answer, `users` at a time: each once, and over again until every user sent one.

    Args:
        endpoint: where.
        prompts: what.
        users: requests in flight.
        salt: put before each prompt: what was sent with another one is not in the prefix cache.
    """
    slots = asyncio.Semaphore(users)

    async def ask(number: int) -> float:
        system, *rest = prompts[number % len(prompts)]
        async with slots:
            started = time.perf_counter()
            await complete(
                endpoint,
                [SystemMessage(f"{salt}-{number}\n{system.content}"), *rest],
                FREE_TEXT,
                temperature=0.0,
                max_tokens=1,
                seed=None,
                run_name="prefill",
                metadata={},
            )
            return time.perf_counter() - started

    before, started = await _counters(endpoint), time.perf_counter()
    seconds = await asyncio.gather(*(ask(number) for number in range(max(len(prompts), users))))
    wall, after = time.perf_counter() - started, await _counters(endpoint)
    hits, queries = (after[name] - before[name] for name in ("hits", "queries"))
    return Pass(seconds, wall, hits / queries if queries else None)


async def prefill_figures(
    endpoints: Mapping[str, Endpoint],
    prompts: Mapping[str, Sequence[Sequence[BaseMessage]]],
    report: Callable[[str], None],
) -> dict[str, Estimate]:
    """`prefill_seconds.<way>.<users>`, `prefill_rps.<way>[.<users>]`, `prefix_hits.<way>.<users>` (when asked again).

    The ways take turns at each number of users, each prompt is sent twice, and the first time is what is timed, when
    nothing of it is in the prefix cache. Without a number, requests a second are those of the most users.
    `prefill_speedup.<users>` is hybrid's rate for one of text.
    """
    figures = {}
    for way, endpoint in endpoints.items():
        for prompt in prompts[way]:  # entities are in their table from here on: the server is timed, no embedder
            await measure_prompt(endpoint, prompt, 0)
        await run_pass(endpoint, prompts[way][:1], 1, uuid4().hex)  # a server's first requests are slower
    for users in CONCURRENT:
        for way, endpoint in endpoints.items():
            salt = uuid4().hex
            first = await run_pass(endpoint, prompts[way], users, salt)
            again = await run_pass(endpoint, prompts[way], users, salt)
            rate = Estimate(*(len(first.seconds) / first.wall,) * 3, n=len(first.seconds))
            figures[f"prefill_seconds.{way}.{users}"] = estimate(first.seconds)
            figures[f"prefill_rps.{way}.{users}"] = figures[f"prefill_rps.{way}"] = rate
            if again.hit_rate is not None:
                figures[f"prefix_hits.{way}.{users}"] = Estimate(*(again.hit_rate,) * 3, n=len(again.seconds))
            report(f"prefill, {users} users, {way}: {rate.mean:.2f} requests a second")
        faster = figures[f"prefill_rps.hybrid.{users}"].mean / figures[f"prefill_rps.text.{users}"].mean
        figures[f"prefill_speedup.{users}"] = Estimate(*(faster,) * 3, n=max(len(prompts["text"]), users))
    return figures


async def _counters(endpoint: Endpoint) -> dict[str, float]:
    """Prompt tokens that the server looked up in its prefix cache, and found there; zero where it does not tell."""
    url = endpoint.base_url.removesuffix("/").removesuffix("/v1") + "/metrics"
    async with httpx.AsyncClient(timeout=endpoint.timeout) as client:
        text = (await client.get(url)).text
    counts = {"hits": 0.0, "queries": 0.0}
    for name, value in COUNTER.findall(text):
        counts[name] += float(value)
    return counts
