"""The one way in which an agent asks its model: render the prompt, constrain, validate, ask again with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import structlog
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.config import get_config
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy
from pydantic import ValidationError

from agents.context import Context, context_of
from agents.schemas import Answer, CallRecord, Failure, Rejection
from agents.state import Trail
from prompts.template import Prompt, Value, clean, load_prompt
from tools.errors import RecGPTError, ServerError, ServerUnreachableError
from tools.llm import Token, complete

T = TypeVar("T", bound=Answer)

WARMER = 0.2
"""Added to the temperature with each further attempt."""

log = structlog.get_logger("recgpt")

RETRY_UNREACHABLE = RetryPolicy(max_attempts=3, initial_interval=0.5, retry_on=ServerUnreachableError)
"""Of every node that asks a model: a server that hiccups is asked again, a wrong answer is not the network's fault."""


class InvalidAnswerError(RecGPTError):
    """A model gave no valid answer in all its attempts; carries what the attempts cost."""

    def __init__(self, agent: str, subject: str, calls: list[CallRecord], rejected: list[Rejection]) -> None:
        """Keep the trail: the error handler of the node puts it into the state."""
        super().__init__(f"{len(calls)} answers were rejected, the last because {rejected[-1].reason}")
        self.agent, self.subject, self.calls, self.rejected = agent, subject, calls, rejected


@dataclass(frozen=True)
class Asked(Generic[T]):
    """A valid answer, and the calls and rejected answers on the way to it."""

    answer: T
    calls: list[CallRecord]
    rejected: list[Rejection] = field(default_factory=list)
    tokens: Sequence[Token] = ()
    """With log-probabilities, where they were asked for."""


async def read_prompt(agent: str, version: str, instructions: str | None) -> Prompt:
    """The prompt of a call, with the system text that a person may have edited for this run."""
    prompt = await asyncio.to_thread(load_prompt, agent, version)
    return prompt.edited(instructions) if instructions else prompt


async def ask(
    runtime: Runtime[Context],
    prompt: Prompt,
    values: Mapping[str, Value],
    schema: type[T],
    *,
    user_id: str,
    subject: str,
    temperature: float,
    max_tokens: int,
    logprobs: bool = False,
) -> Asked[T]:
    """Ask a model until its answer is valid, `context.attempts` times at most.

    The server holds the answer to the JSON schema of `schema`; what that doesn't say (names that differ, no pick twice,
    the length of some texts) is validated here, as is the end of the answer. The next attempt is told the reason, and
    samples a little warmer: at a low temperature the same question brings the same answer.

    Args:
        runtime: of the node.
        prompt: what to ask.
        values: fields of the prompt.
        schema: class of the answer.
        user_id: for the logs.
        subject: what the call is about (a persona, an item, a dimension), for trail and logs.
        temperature: of sampling.
        max_tokens: bound of the answer.
        logprobs: whether the answer's log-probabilities are wanted.

    Raises:
        InvalidAnswerError: no attempt was valid.
        ServerUnreachableError: the server did not answer; the node's retry policy asks again.
        ServerError: the server refused the request.
    """
    context = context_of(runtime)
    # Metadata reaches subgraphs, the run id itself does not; LangGraph's server puts it there, a caller can.
    logger = log.bind(
        run_id=get_config()["metadata"].get("run_id"),
        user_id=user_id,
        agent=prompt.agent,
        subject=subject,
        prompt=prompt.name,
    )
    endpoint = context.endpoint(prompt.agent)
    messages = asked = prompt.render(values, hybrid=endpoint.entities is not None)
    calls: list[CallRecord] = []
    rejected: list[Rejection] = []
    for attempt in range(1, context.attempts + 1):
        completion = await complete(
            endpoint,
            messages,
            schema.model_json_schema(),
            temperature=min(temperature + WARMER * (attempt - 1), 2.0),
            max_tokens=max_tokens,
            seed=None if context.seed is None else context.seed + attempt - 1,
            run_name=prompt.agent,
            metadata={
                "agent": prompt.agent,
                "prompt_name": prompt.agent,
                "prompt_version": prompt.version,
                "user_id": user_id,
                "subject": subject,
                "attempt": attempt,
            },
            logprobs=logprobs,
        )
        answer, reason = _validate(schema, completion.text, completion.cut_off)
        record = CallRecord(
            agent=prompt.agent,
            subject=subject,
            prompt=prompt.name,
            model=endpoint.model,
            attempt=attempt,
            valid=answer is not None,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            seconds=completion.seconds,
        )
        calls.append(record)
        logger.info(
            "model_call",
            **record.model_dump(include={"attempt", "valid", "prompt_tokens", "completion_tokens", "seconds"}),
        )
        if answer is not None:
            return Asked(answer, calls, rejected, completion.tokens)
        rejected.append(
            Rejection(
                agent=prompt.agent, subject=subject, attempt=attempt, reason=reason, answer=clean(completion.text)
            )
        )
        messages = await _with_reason(asked, reason)
    raise InvalidAnswerError(prompt.agent, subject, calls, rejected)


def failed(agent: str, subject: str, error: BaseException) -> Trail:
    """The state update for an agent that gave nothing; what is not an expected failure is raised again."""
    if isinstance(error, InvalidAnswerError):
        failure = Failure(agent=error.agent, subject=error.subject, kind="invalid_answer", reason=str(error))
        return {"failures": [failure], "calls": error.calls, "rejected": error.rejected}
    if isinstance(error, ServerUnreachableError):
        return {"failures": [Failure(agent=agent, subject=subject, kind="server_unreachable", reason=str(error))]}
    if isinstance(error, ServerError):
        return {"failures": [Failure(agent=agent, subject=subject, kind="server_refused", reason=str(error))]}
    raise error


def raise_if_gone(failures: Sequence[Failure]) -> None:
    """For callers to whom a run without its server is no result.

    Raises:
        ServerUnreachableError: the server did not answer one of the calls.
    """
    if lost := [failure for failure in failures if failure.kind == "server_unreachable"]:
        raise ServerUnreachableError(lost[0].reason)


async def gather_all(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first expected error ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except* RecGPTError as errors:
        raise errors.exceptions[0] from None


def _validate(schema: type[T], text: str, cut_off: bool) -> tuple[T | None, str]:
    if cut_off:
        return None, "it was too long and was cut off"
    try:
        return schema.model_validate_json(text), ""
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        return None, f"{place + ': ' if place else ''}{fault['msg'].removeprefix('Value error, ')}"


async def _with_reason(messages: list[BaseMessage], reason: str) -> list[BaseMessage]:
    """The question again, with why the last answer was rejected; without that answer: a small model copies it."""
    repair = await asyncio.to_thread(load_prompt, "repair", "v1")
    system, question = messages
    told = f"\n\n{repair.render({'reason': reason})[-1].content}"
    if isinstance(question.content, str):
        return [system, HumanMessage(question.content + told)]
    return [system, HumanMessage([*question.content, {"type": "text", "text": told}])]
