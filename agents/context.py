"""The runtime context: every setting of a request, with bounds, resolved once and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from langgraph.runtime import Runtime
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tools.adaptor import ADAPTOR
from tools.embedding import PACKAGED_MODEL
from tools.entities import EntitySource
from tools.llm import Endpoint
from tools.models import DEFAULT_MODEL, JUDGE_OF
from tools.ranker import RANKER
from tools.towers import TOWERS

AGENTS = ("planner", "expert", "arbiter", "style", "explainer", "evaluator", "reviewer")
"""All that ask a model; each has a prompt, a temperature and so on of its own in the context."""
SAME_MODEL = {"route": "expert", "one_shot": "reviewer"}
"""Agents of the baseline that play another's part: they ask its model."""
JUDGE_AGENTS = ("evaluator", "reviewer")
"""Agents that grade: they may have a model and a server of their own."""
HYBRID_AGENTS = ("planner", "arbiter")
"""Agents that read a history: theirs are the prompts with entities."""
TEXT_TOKENS = 1500
"""Of the planner's prompt, where not set otherwise: a CPU takes seconds for thousands."""
UNBOUNDED = 1_000_000
"""Tokens of a prompt that nothing but the window bounds."""
DEFAULT_BASE_URL = "http://127.0.0.1:8400/v1"
CONNECTION = frozenset({"base_url", "judge_base_url", "api_key", "request_timeout", "answers", "weather"})
"""Settings that say how something is reached, not what is asked of it; an address may hold a key."""


def _for_nodes(*nodes: str, **extra: str) -> dict[str, Any]:
    """Metadata by which Studio shows a setting at its nodes."""
    return {"langgraph_nodes": list(nodes), **extra}


class Context(BaseSettings):
    """Settings of one request: argument, else environment variable `RECGPT_<FIELD>`, else default.

    A prompt version names a file `prompts/<agent>/<version>.yaml`; instructions replace that file's system
    text for this run, which is how Studio edits a prompt. An agent's model is `model` unless it has one of its own,
    such as an adapter that the server has under that name.
    """

    model_config = SettingsConfigDict(env_prefix="RECGPT_", frozen=True, extra="forbid")

    dataset: Path = Field(Path("data/completejourney"), description="data set directory")
    base_url: str = Field(DEFAULT_BASE_URL, description="OpenAI-compatible model server")
    model: str = Field(DEFAULT_MODEL, description="model name at the server")
    api_key: SecretStr = Field(SecretStr("EMPTY"), description="key of the model server, if it has one")
    request_timeout: float = Field(180.0, gt=0, le=3600, description="seconds for one model call")
    answers: Path | None = Field(
        None,
        description="SQLite file that keeps the models' answers: what was asked before, of the same weights, costs "
        "nothing; a name of your own whose weights change needs another file",
    )
    embedding_model: str = Field(
        PACKAGED_MODEL, description="sentence-transformers directory or name, or the address of a /v1/embeddings"
    )
    weather: str | None = Field(None, description="weather source: a CSV or Parquet file, or a web address")
    seed: int | None = Field(
        None,
        ge=0,
        le=2**31 - 1,
        description="of sampling at the server; vLLM 0.32 on a CPU dies on a seeded request whose prompt it chunks, "
        "which the profile cpu of `recgpt serve` rules out",
    )

    representation: Literal["text", "hybrid", "leaf"] = Field(
        "text",
        description="how planner and arbiter read items and queries: as text, as one input embedding each, which needs "
        "an adaptor and a server that takes prompt embeddings (that of `recgpt serve` does), or by the leaf category",
        json_schema_extra=_for_nodes("plan_intents", "arbitrate_tags"),
    )
    adaptor: Path = Field(
        ADAPTOR,
        description="directory of a trained adaptor",
        json_schema_extra=_for_nodes("plan_intents", "arbitrate_tags"),
    )
    personas: int = Field(
        3, ge=2, le=8, description="K: at most so many personas", json_schema_extra=_for_nodes("plan_intents")
    )
    tags_per_expert: int = Field(
        20,
        ge=3,
        le=40,
        description="tags of one expert, or of one route of the baseline",
        json_schema_extra=_for_nodes("run_expert", "run_route"),
    )
    shelf: int = Field(
        24,
        ge=0,
        le=60,
        description="leaf categories that tools propose to one expert (bought before, rising, bought besides); 0 for "
        "none",
        json_schema_extra=_for_nodes("fill_shelves"),
    )
    vocabulary: Literal["shelf", "catalogue", "any"] = Field(
        "shelf",
        description="what an expert's tag may be: one of its own shelf (of the catalogue where the shelf has too few, "
        "as for the baseline's routes, which have none), a leaf category of the catalogue, or any text: a larger model "
        "needs no such hold",
        json_schema_extra=_for_nodes("run_expert", "run_route"),
    )
    final_tags: int = Field(
        12,
        ge=1,
        le=60,
        description="tags that the arbiter picks, or that the baseline's union keeps",
        json_schema_extra=_for_nodes("arbitrate_tags", "unite_tags"),
    )
    towers: Path = Field(
        TOWERS,
        description="directory of trained towers",
        json_schema_extra=_for_nodes("fill_shelves", "retrieve_items"),
    )
    ranker: Path = Field(
        RANKER,
        description="directory of a trained ranker",
        json_schema_extra=_for_nodes("fill_shelves", "retrieve_items"),
    )
    exploration: float = Field(
        0.3,
        ge=0,
        le=10,
        description="what it is worth that a tag found something new to the household, where the likeliest item of all "
        "is worth 1; chosen on validation baskets",
        json_schema_extra=_for_nodes("retrieve_items"),
    )
    conversion_floor: float = Field(
        0.5,
        ge=0,
        le=1,
        description="the mean chance of what is shown is at least this share of the best possible",
        json_schema_extra=_for_nodes("retrieve_items"),
    )
    items: int = Field(
        6,
        ge=1,
        le=50,
        description="items to recommend",
        json_schema_extra=_for_nodes("retrieve_items", "retrieve_tagged_items"),
    )
    judge: bool = Field(False, description="grade each explanation")
    judge_model: str | None = Field(
        None,
        description="model of the judge's agents [default: the tuned judge beside the default model, else model]",
    )
    judge_base_url: str | None = Field(
        None, description="server of the judge's agents, where it is another one [default: base_url]"
    )
    judge_reverse: bool = Field(
        False,
        description="the judge reads labels and facts in the opposite order: what it says should not hang on that",
        json_schema_extra=_for_nodes("evaluate_dimension", "judge_at_once"),
    )
    judge_threshold: float = Field(
        0.6,
        gt=0,
        le=1,
        description="tau: share of positive dimensions from which a grade is Superior",
        json_schema_extra=_for_nodes("review_verdict"),
    )

    planner_tokens: int | None = Field(
        None,
        ge=500,
        le=UNBOUNDED,
        description="most tokens of the planner's prompt, never more than the model's window holds; where it is not "
        "set, 1,500, and of a hybrid prompt what the window holds",
        json_schema_extra=_for_nodes("plan_intents"),
    )
    route_tokens: int = Field(
        2000,
        ge=500,
        le=1_000_000,
        description="most tokens of the prompt of a route of the baseline, never more than the model's window holds",
        json_schema_extra=_for_nodes("fit_events"),
    )
    default_window: int = Field(
        8192, ge=1024, le=10_000_000, description="context window of a server that does not tell its own"
    )
    attempts: int = Field(2, ge=1, le=10, description="answers asked of a model before its call counts as failed")
    rewrite_below: float = Field(
        0.5, ge=0, le=1, description="a tag less similar to every leaf category is rewritten to the nearest leaf"
    )

    planner_model: str | None = Field(None, json_schema_extra=_for_nodes("plan_intents"))
    planner_prompt: str = Field("v1", json_schema_extra=_for_nodes("plan_intents"))
    planner_temperature: float = Field(0.4, ge=0, le=2, json_schema_extra=_for_nodes("plan_intents"))
    planner_instructions: str | None = Field(
        None, json_schema_extra=_for_nodes("plan_intents", langgraph_type="prompt")
    )
    expert_model: str | None = Field(None, json_schema_extra=_for_nodes("run_expert", "run_route"))
    expert_prompt: str = Field("v1", json_schema_extra=_for_nodes("run_expert"))
    expert_temperature: float = Field(0.7, ge=0, le=2, json_schema_extra=_for_nodes("run_expert", "run_route"))
    expert_instructions: str | None = Field(None, json_schema_extra=_for_nodes("run_expert", langgraph_type="prompt"))
    arbiter_model: str | None = Field(None, json_schema_extra=_for_nodes("arbitrate_tags"))
    arbiter_prompt: str = Field("v1", json_schema_extra=_for_nodes("arbitrate_tags"))
    arbiter_temperature: float = Field(0.7, ge=0, le=2, json_schema_extra=_for_nodes("arbitrate_tags"))
    arbiter_instructions: str | None = Field(
        None, json_schema_extra=_for_nodes("arbitrate_tags", langgraph_type="prompt")
    )
    style_model: str | None = Field(None, json_schema_extra=_for_nodes("write_style"))
    style_prompt: str = Field("v1", json_schema_extra=_for_nodes("write_style"))
    style_temperature: float = Field(1.0, ge=0, le=2, json_schema_extra=_for_nodes("write_style"))
    style_instructions: str | None = Field(None, json_schema_extra=_for_nodes("write_style", langgraph_type="prompt"))
    explainer_model: str | None = Field(None, json_schema_extra=_for_nodes("write_explanation", "explain_item"))
    explainer_prompt: str = Field("v1", json_schema_extra=_for_nodes("write_explanation"))
    explainer_temperature: float = Field(
        0.4, ge=0, le=2, json_schema_extra=_for_nodes("write_explanation", "explain_item")
    )
    explainer_instructions: str | None = Field(
        None, json_schema_extra=_for_nodes("write_explanation", langgraph_type="prompt")
    )
    evaluator_model: str | None = Field(None, json_schema_extra=_for_nodes("evaluate_dimension"))
    evaluator_prompt: str = Field("v1", json_schema_extra=_for_nodes("evaluate_dimension"))
    evaluator_temperature: float = Field(0.0, ge=0, le=2, json_schema_extra=_for_nodes("evaluate_dimension"))
    evaluator_instructions: str | None = Field(
        None, json_schema_extra=_for_nodes("evaluate_dimension", langgraph_type="prompt")
    )
    reviewer_model: str | None = Field(
        None, json_schema_extra=_for_nodes("question_labels", "review_verdict", "judge_at_once")
    )
    reviewer_prompt: str = Field("v1", json_schema_extra=_for_nodes("review_verdict"))
    reviewer_temperature: float = Field(
        0.0, ge=0, le=2, json_schema_extra=_for_nodes("review_verdict", "judge_at_once")
    )
    reviewer_instructions: str | None = Field(
        None, json_schema_extra=_for_nodes("review_verdict", langgraph_type="prompt")
    )

    def endpoint(self, agent: str) -> Endpoint:
        """Where an agent's model is."""
        part = SAME_MODEL.get(agent, agent)
        judging = part in JUDGE_AGENTS
        shared = (self.judge_model or JUDGE_OF.get(self.model, self.model)) if judging else self.model
        model: str = getattr(self, f"{part}_model") or shared
        base_url = (self.judge_base_url if judging else None) or self.base_url
        hybrid = self.representation == "hybrid" and agent in HYBRID_AGENTS
        entities = EntitySource(self.dataset / "index", self.adaptor, self.embedding_model, model) if hybrid else None
        return Endpoint(base_url, model, self.api_key, self.request_timeout, self.answers, entities)

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings that are not the defaults, as JSON values, but for `CONNECTION`."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude=set(CONNECTION))

    @property
    def planner_budget(self) -> int:
        """Most tokens of the planner's prompt, whatever the window."""
        return self.planner_tokens or (UNBOUNDED if self.representation == "hybrid" else TEXT_TOKENS)

    def models(self, *agents: str) -> set[str]:
        """Names of the models that these agents ask, all agents where none is named."""
        return {self.endpoint(agent).model for agent in agents or AGENTS}


def context_of(runtime: Runtime[Context]) -> Context:
    """The context of a run; one that was invoked without any (as in Studio) has the defaults."""
    return runtime.context or Context()
