"""The Decision Arbiter (section 4): judges the whole pool jointly and picks the best set."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import chain, zip_longest
from typing import Any, TypeVar

from langgraph.errors import NodeError
from langgraph.runtime import Runtime
from langgraph.types import Command

from agents.calls import ask, failed, read_prompt
from agents.context import Context, context_of
from agents.schemas import Household, Persona, ProposedTag, Tag, selection_schema
from agents.state import IntentState
from agents.wording import moment_text, profile_text
from prompts.template import Value

TOKENS_A_PICK = 34

T = TypeVar("T")


async def arbitrate_tags(state: IntentState, runtime: Runtime[Context]) -> IntentState:
    """Pick `T_final = f_arbiter(T_1 + ... + T_K, C)`, best first; the tags are not grounded yet."""
    context = context_of(runtime)
    pool = pool_in_turn(state.get("personas", []), state.get("pool", []))
    if not pool:
        return {"tags": [], "degraded": ["no tags: no expert gave a valid answer"]}
    prompt = await read_prompt("arbiter", context.arbiter_prompt, context.arbiter_instructions)
    count = min(context.final_tags, len(pool))
    asked = await ask(
        runtime,
        prompt,
        arbiter_values(state["as_of"], state["household"], state["personas"], pool, count),
        selection_schema([proposed.tag for proposed in pool], count),
        user_id=state["user_id"],
        subject="household",
        temperature=context.arbiter_temperature,
        max_tokens=TOKENS_A_PICK * count + 20,
    )
    persona_of = {proposed.tag: proposed.persona for proposed in pool}
    picks = {pick.tag: pick.reason for pick in reversed(asked.answer.picks)}
    chosen = [
        ungrounded_tag(tag, persona_of[tag], picks[tag])
        for tag in dict.fromkeys(pick.tag for pick in asked.answer.picks)
    ]
    rest = [ungrounded_tag(proposed.tag, proposed.persona) for proposed in pool if proposed.tag not in picks]
    note = f"the arbiter named {count - len(chosen)} of its {count} picks twice: the experts' own tags fill its list"
    return {
        "tags": [*chosen, *rest[: count - len(chosen)]],
        "calls": asked.calls,
        "rejected": asked.rejected,
        "degraded": [note] if len(chosen) < count else [],
    }


async def record_arbiter_failure(state: IntentState, runtime: Runtime[Context], error: NodeError) -> Command[Any]:
    """Without a verdict on the set the experts' own tags go on, one of each in turn, and the answer says so."""
    pool = pool_in_turn(state["personas"], state["pool"])[: context_of(runtime).final_tags]
    tags = [ungrounded_tag(proposed.tag, proposed.persona) for proposed in pool]
    note = "tags are the experts' own, in turn: the arbiter gave no valid answer"
    update = {**failed("arbiter", "household", error.error), "tags": tags, "degraded": [note]}
    return Command(update=update, goto="ground_tags")


def in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """The first entry of each list, then the second of each, and so on."""
    return [entry for entry in chain.from_iterable(zip_longest(*lists)) if entry is not None]


def pool_in_turn(personas: Sequence[Persona], pool: Sequence[ProposedTag]) -> list[ProposedTag]:
    """The pool as the arbiter reads it: one tag of each expert in turn; of tags that differ in case only, the first."""
    tags = in_turn([[proposed for proposed in pool if proposed.persona == persona.name] for persona in personas])
    return list({proposed.tag.casefold(): proposed for proposed in reversed(tags)}.values())[::-1]


def ungrounded_tag(tag: str, persona: str, reason: str = "") -> Tag:
    """A final tag before `ground_tags` has seen it."""
    return Tag(tag=tag, persona=persona, category=[], score=0.0, reason=reason, source="model", proposed=tag)


def arbiter_values(
    as_of: datetime, household: Household, personas: Sequence[Persona], pool: Sequence[ProposedTag], tags: int
) -> dict[str, Value]:
    """The fields of the arbiter's prompt, for `tags` picks of a pool from `pool_in_turn`."""
    number = {persona.name: n for n, persona in enumerate(personas, 1)}
    return {
        "moment": moment_text(as_of),
        "profile": profile_text(household.profile),
        "personas": [
            {
                "number": number[persona.name],
                "name": persona.name,
                "intent": persona.intent,
                "evidence": [line.text for line in persona.evidence],
            }
            for persona in personas
        ],
        "signals": [{"text": signal.text} for signal in household.signals],
        "pool": [{"tag": proposed.tag, "number": number[proposed.persona]} for proposed in pool],
        "tags": tags,
    }
