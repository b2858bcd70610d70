"""Rewards of answers as TRL asks for them: those of `training.rewards`, of an agent's rows (sections 5 and 6)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from agents.judging import tag_judge_tasks, whole_household
from agents.schemas import ExplanationText, JudgeTask, TagList, tags_schema
from tools.dataset import Dataset
from tools.embedding import Embedder
from tools.errors import DatasetError, TrainingError
from tools.retrieval import open_index
from training.grpo_recipe import GrpoRecipe, Shaping
from training.grpo_rows import Row
from training.reward_model import RewardRecipe, open_reward, pack_tasks, score_packed
from training.rewards import (
    Parts,
    RecentExplanations,
    Thresholds,
    accuracy_reward,
    alignment_reward,
    annealed,
    constrained_reward,
    diversity_reward,
    explanation_reward,
    gates,
    length_reward,
    summed_reward,
    thresholds_at,
)
from training.view import training_view

NOTHING = Parts(0.0, 0.0, 0.0, 0.0)
"""Of an answer that is not valid."""

Scorer = Callable[[Sequence[JudgeTask]], Sequence[float | None]]
"""The reward model: f_RM of the candidates of one context, each between 0 and 1."""


def open_scorer(reward: str, device: torch.device, report: Callable[[str], None]) -> Scorer:
    """The reward model on a device.

    Raises:
        ModelFilesError: its weights are not those of its card, or it was trained on another base model.
    """
    model, tokenizer = open_reward(Path(reward), report)
    model.to(device)

    def score(tasks: Sequence[JudgeTask]) -> list[float]:
        with torch.inference_mode():
            packed = pack_tasks(tasks, tokenizer, RewardRecipe.max_length)
            return [value for one in packed for value in score_packed(model, one).tolist()]

    return score


def _scores(
    scorer: Scorer,
    rows: Sequence[Row],
    numbers: Sequence[int],
    texts: Sequence[Sequence[str]],
    tasks_of: Callable[[Row, Sequence[str]], Sequence[JudgeTask]],
) -> dict[tuple[int, str], float]:
    """f_RM of each text of some answers among the facts of its row; what is of one row is read together.

    Args:
        scorer: the reward model.
        rows: all.
        numbers: of each answer the number of its row.
        texts: of each answer.
        tasks_of: what texts of a row are judged by.

    Raises:
        TrainingError: a score is no number.
    """
    wanted: defaultdict[int, dict[str, None]] = defaultdict(dict)
    for number, own in zip(numbers, texts, strict=True):
        wanted[number].update(dict.fromkeys(own))
    scores = {}
    for number, different in wanted.items():
        if different:
            found = scorer(tasks_of(rows[number], list(different)))
            for text, value in zip(different, found, strict=True):
                scores[number, text] = _finite(value, rows[number])
    return scores


def _finite(value: float | None, row: Row) -> float:
    """The value itself.

    Raises:
        TrainingError: it is no number: a mean with it would be none either, and the weights after it lost.
    """
    if value is None or not np.isfinite(value):
        raise TrainingError(
            f"{row.name}: a reward is {value!r}, expected a finite number; look at the facts of this row, and at the "
            "reward model with `recgpt eval judge --reward`"
        )
    return value


class Rewards(Protocol):
    """What answers are rewarded by."""

    evaluating: bool
    """Whether it is an evaluation, which is the same at all steps."""
    recent: RecentExplanations | None
    """What must be in a checkpoint beside the weights; None of experts."""

    def schema(self, row: int) -> type[BaseModel]:
        """What an answer to a row is held to, as it is where the agents are served."""

    def reward(
        self,
        completions: Sequence[Sequence[Mapping[str, str]]],
        row: Sequence[int],
        trainer_state: Any,  # noqa: ANN401 (transformers')
        log_metric: Callable[[str, float], None],
        **others: object,
    ) -> list[float]:
        """TRL's signature of a reward function: one reward a completion.

        It is one function, as gates multiply, and TRL only adds what several functions give.

        Args:
            completions: each a conversation of one message.
            row: of each completion the number of its row.
            trainer_state: with the step.
            log_metric: TRL's, takes a name and a mean.
            others: columns that are of no use here.
        """


class TagFacts:
    """What tags are judged by: facts of the household at the moment of the prompt, from what may be trained on."""

    def __init__(self, dataset: Dataset, embedder: Embedder) -> None:
        """Of the data set that the rows were made from."""
        self._view = training_view(dataset)
        self._index = open_index(dataset, embedder)
        self._household = lru_cache(maxsize=1024)(partial(whole_household, self._view))

    def __call__(self, row: Row, tags: Sequence[str]) -> list[JudgeTask]:
        """A task a tag."""
        household = self._household(row.user_id, row.as_of)
        return tag_judge_tasks(row.user_id, row.as_of, household, tags, self._index)


class TagParts:
    """The four rewards of lists of tags (section 5)."""

    def __init__(
        self,
        rows: Sequence[Row],
        scorer: Scorer,
        facts: Callable[[Row, Sequence[str]], Sequence[JudgeTask]],
        vectors: Mapping[str, NDArray[np.float32]],
        listed: int,
    ) -> None:
        """Of answers to `rows`.

        Args:
            rows: of experts.
            scorer: the reward model.
            facts: what it reads of a tag, see `TagFacts`.
            vectors: of the catalogue's leaves as tags, the only ones that an answer may have.
            listed: see `accuracy_reward`.
        """
        self._rows, self._scorer, self._facts = rows, scorer, facts
        self._vectors, self._vocabulary, self._listed = vectors, tuple(vectors), listed

    def schema(self, row: int) -> type[TagList]:
        """As many tags of the catalogue as the prompt asks for."""
        return _tags_schema(self._rows[row].tags, self._vocabulary)

    def of(self, numbers: Sequence[int], texts: Sequence[str]) -> list[Parts | None]:
        """Of each answer to the row of this number; None of one that is not valid.

        A tag that an answer names again counts once, as in the graph.
        """
        tags = [self._tags(number, text) for number, text in zip(numbers, texts, strict=True)]
        scores = _scores(self._scorer, self._rows, numbers, [own or () for own in tags], self._facts)
        return [
            Parts(
                accuracy_reward(own, self._rows[number].bought, self._rows[number].new, self._listed),
                alignment_reward([scores[number, tag] for tag in own]),
                diversity_reward(np.stack([self._vectors[tag] for tag in own])),
                length_reward(own),
            )
            if own
            else None
            for number, own in zip(numbers, tags, strict=True)
        ]

    def _tags(self, number: int, text: str) -> list[str] | None:
        try:
            return list(dict.fromkeys(self.schema(number).model_validate_json(text).tags))
        except ValidationError:
            return None


def answer_thresholds(
    parts: TagParts, answers: Sequence[str], recipe: GrpoRecipe, kept: Path, report: Callable[[str], None]
) -> tuple[Thresholds, Thresholds]:
    """Thresholds of the gates at the first step and at the last, from answers of the training data.

    Args:
        parts: of the first rows.
        answers: to these rows.
        recipe: the shares that the gates keep out.
        kept: file of the thresholds of this run, read if it is there, else written.
        report: called with a sentence now and then.

    Raises:
        DatasetError: no answer can be rewarded.
    """
    if kept.is_file():
        first, last = json.loads(kept.read_text())
        return Thresholds(**first), Thresholds(**last)
    found = []
    for number, answer in enumerate(answers):
        found += [one for one in parts.of([number], [answer]) if one]
        if number % 10 == 9:
            report(f"thresholds of the gates: {number + 1} of {len(answers)} answers")
    if not found:
        raise DatasetError("no answer of the training data has tags of the catalogue alone: make the data anew")
    limits = thresholds_at(found, recipe.start), thresholds_at(found, recipe.end)
    partial_file = kept.with_suffix(".partial")
    partial_file.write_text(json.dumps([asdict(one) for one in limits]))
    partial_file.rename(kept)
    return limits


class ExpertRewards:
    """Rewards of lists of tags: their four parts as one (section 5)."""

    recent: RecentExplanations | None = None

    def __init__(
        self, parts: TagParts, recipe: GrpoRecipe, shaping: Shaping, thresholds: tuple[Thresholds, Thresholds]
    ) -> None:
        """By the thresholds of the gates at the first step and at the last."""
        self.evaluating = False
        self.schema = parts.schema
        self._parts, self._recipe, self._shaping, self._thresholds = parts, recipe, shaping, thresholds

    def reward(
        self,
        completions: Sequence[Sequence[Mapping[str, str]]],
        row: Sequence[int],
        trainer_state: Any,  # noqa: ANN401 (transformers')
        log_metric: Callable[[str, float], None],
        **others: object,
    ) -> list[float]:
        """One reward a completion, see `Rewards.reward`."""
        progress = 1.0 if self.evaluating else trainer_state.global_step / max(trainer_state.max_steps - 1, 1)
        limits = annealed(*self._thresholds, progress)
        found = self._parts.of(row, [text[0]["content"] for text in completions])
        parts = [one or NOTHING for one in found]
        log_metric("valid", _share(one is not None for one in found))
        for name in asdict(NOTHING):
            log_metric(name, _mean([getattr(one, name) for one in parts]))
        for name in asdict(limits):
            log_metric(f"gate_{name}", _share(gates(one, limits)[name] for one in parts))
        if self._shaping == "sum":
            return [summed_reward(one, self._recipe.weights) for one in parts]
        return [constrained_reward(one, limits) for one in parts]


class ExplainerRewards:
    """Rewards of explanations (section 6)."""

    def __init__(self, rows: Sequence[Row], scorer: Scorer, recipe: GrpoRecipe, written: Sequence[str]) -> None:
        """Rewards of answers to `rows`.

        The buffer starts with `written`, explanations of the training data: nothing is unlike an empty buffer, and
        unlike a nearly empty one is all that differs from the last few texts. Evaluations compare with these same
        texts at every step, so that steps can be compared.
        """
        self.evaluating = False
        self.recent: RecentExplanations | None = filled(written)
        self._held_out = filled(written)
        self._rows, self._scorer, self._recipe = rows, scorer, recipe

    def schema(self, row: int) -> type[ExplanationText]:
        """Any text."""
        return ExplanationText

    def reward(
        self,
        completions: Sequence[Sequence[Mapping[str, str]]],
        row: Sequence[int],
        trainer_state: Any,  # noqa: ANN401 (transformers')
        log_metric: Callable[[str, float], None],
        **others: object,
    ) -> list[float]:
        """One reward a completion, see `Rewards.reward`.

        All texts of a step are compared with the buffer as it was before: within one step none is later than another.
        Then one of each group is put there.
        """
        assert self.recent is not None
        texts = [_explanation(text[0]["content"]) for text in completions]
        scores = _scores(self._scorer, self._rows, row, [[text] if text else [] for text in texts], _text_tasks)
        buffer = self._held_out if self.evaluating else self.recent
        found = [
            (scores[number, text], buffer.diversity_reward(text) if len(buffer) else float("inf")) if text else None
            for number, text in zip(row, texts, strict=True)
        ]
        if not self.evaluating:
            # One of a group: its answers are to one prompt, of which a page shows one. All of them would fill the
            # buffer within a step or two, and the words of any other item would be news.
            for text in {number: text for number, text in zip(row, texts, strict=True) if text}.values():
                self.recent.add(text)
        limit = self._recipe.text_diversity
        valid = [one for one in found if one is not None]
        log_metric("valid", len(valid) / len(found))
        log_metric("alignment", _mean([one[0] if one else 0.0 for one in found]))
        # R_div has no lowest value that an answer without a text could count as: the mean is over valid ones.
        if valid:
            log_metric("diversity", _mean([one[1] for one in valid]))
        log_metric("gate_diversity", _share(one is not None and one[1] >= limit for one in found))
        rewards = [explanation_reward(*one, limit) if one else 0.0 for one in found]
        return [_finite(value, self._rows[number]) for value, number in zip(rewards, row, strict=True)]


def _text_tasks(row: Row, texts: Sequence[str]) -> list[JudgeTask]:
    assert row.judged is not None
    return [row.judged.model_copy(update={"subject": text}) for text in texts]


def filled(texts: Sequence[str]) -> RecentExplanations:
    """A buffer of the last of these texts."""
    buffer = RecentExplanations()
    for text in texts:
        buffer.add(text)
    return buffer


@lru_cache(maxsize=1024)
def _tags_schema(count: int, vocabulary: tuple[str, ...]) -> type[TagList]:
    return tags_schema(count, vocabulary)


def _explanation(answer: str) -> str | None:
    try:
        return ExplanationText.model_validate_json(answer).text
    except ValidationError:
        return None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(held: Iterator[bool]) -> float:
    return _mean([float(one) for one in held])
