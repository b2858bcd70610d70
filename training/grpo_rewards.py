"""Rewards of answers as TRL asks for them: those of `training.rewards`, of an agent's rows (sections 5 and 6)."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from agents.schemas import ExplanationText, JudgeTask, TagList, tags_schema
from tools.errors import DatasetError, TrainingError
from training.grpo_recipe import GrpoRecipe, Shaping
from training.grpo_rows import Row
from training.reward_model import RewardRecipe, open_reward, pack_tasks, score_packed
from training.rewards import (
    Parts,
    RecentExplanations,
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


def score_shelves(
    rows: Sequence[Row], open_model: Callable[[], Scorer], kept: Path, report: Callable[[str], None]
) -> list[dict[str, float]]:
    """For each row the scores of the tags on its shelf, the only ones that an answer may have: made once.

    Args:
        rows: of experts.
        open_model: opens the reward model, whose memory is the policy's afterwards.
        kept: file of scores of the same rows by the same model, read if it is there, else written.
        report: called with a sentence now and then.
    """
    if kept.is_file():
        scores: list[dict[str, float]] = json.loads(kept.read_text())
        return scores
    scorer, scores = open_model(), []
    for number, row in enumerate(rows, 1):
        found = scorer(row.tasks)
        scores.append({task.subject: _finite(value, row) for task, value in zip(row.tasks, found, strict=True)})
        if number % 50 == 0 or number == len(rows):
            report(f"reward model: {number} of {len(rows)} shelves")
    partial_file = kept.with_suffix(".partial")
    partial_file.write_text(json.dumps(scores))
    partial_file.rename(kept)
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


class ExpertRewards:
    """Rewards of lists of tags (section 5)."""

    recent: RecentExplanations | None = None

    def __init__(
        self,
        rows: Sequence[Row],
        scores: Sequence[Mapping[str, float]],
        vectors: Mapping[str, NDArray[np.float32]],
        recipe: GrpoRecipe,
        shaping: Shaping,
        trained: int,
    ) -> None:
        """Rewards of answers to `rows` by the `scores` of their tags and the `vectors` of all tags.

        The first `trained` rows are trained on: the thresholds are of their answers.

        Raises:
            DatasetError: no row has an answer that could be rewarded.
        """
        self.evaluating = False
        self._rows, self._scores, self._vectors = rows, scores, vectors
        self._recipe, self._shaping = recipe, shaping
        answers = [found for number, row in enumerate(rows[:trained]) if (found := self.parts(number, row.answer))]
        if not answers:
            raise DatasetError("no answer of the training data has tags of its shelf: make the data anew")
        self.thresholds = (thresholds_at(answers, recipe.start), thresholds_at(answers, recipe.end))
        """Of the gates at the first step and at the last, from the answers of the training data."""

    def reward(
        self,
        completions: Sequence[Sequence[Mapping[str, str]]],
        row: Sequence[int],
        trainer_state: Any,  # noqa: ANN401 (transformers')
        log_metric: Callable[[str, float], None],
        **others: object,
    ) -> list[float]:
        """One reward a completion, see `Rewards.reward`."""
        recipe = self._recipe
        progress = 1.0 if self.evaluating else trainer_state.global_step / max(trainer_state.max_steps - 1, 1)
        limits = annealed(*self.thresholds, progress)
        found = [self.parts(number, text[0]["content"]) for number, text in zip(row, completions, strict=True)]
        parts = [one or NOTHING for one in found]
        log_metric("valid", _share(one is not None for one in found))
        for name in asdict(NOTHING):
            log_metric(name, _mean([getattr(one, name) for one in parts]))
        for name in asdict(limits):
            log_metric(f"gate_{name}", _share(gates(one, limits)[name] for one in parts))
        if self._shaping == "sum":
            rewards = [summed_reward(one, recipe.weights) for one in parts]
        else:
            rewards = [constrained_reward(one, limits) for one in parts]
        return [_finite(value, self._rows[number]) for value, number in zip(rewards, row, strict=True)]

    def schema(self, row: int) -> type[TagList]:
        """As many tags as are asked for, of the row's shelf."""
        known = tuple(tag for tag in self._scores[row] if tag in self._vectors)
        return _tags_schema(self._rows[row].tags, known)

    def parts(self, number: int, text: str) -> Parts | None:
        """The four rewards of an answer to a row; None of one that is not valid, as with a tag that is on no shelf."""
        row, scores = self._rows[number], self._scores[number]
        try:
            tags = self.schema(number).model_validate_json(text).tags
        except ValidationError:
            return None
        return Parts(
            accuracy_reward(tags, row.bought, row.new, self._recipe.listed),
            alignment_reward([scores[tag] for tag in tags]),
            diversity_reward(np.stack([self._vectors[tag] for tag in tags])),
            length_reward(tags),
        )


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
        scores = self._scores(row, texts)
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

    def _scores(self, row: Sequence[int], texts: Sequence[str | None]) -> dict[tuple[int, str], float]:
        """f_RM of each valid text among the facts of its row; the texts of one row share their prompt."""
        wanted: defaultdict[int, dict[str, None]] = defaultdict(dict)
        for number, text in zip(row, texts, strict=True):
            if text:
                wanted[number][text] = None
        scores = {}
        for number, own in wanted.items():
            task = self._rows[number].tasks[0]
            found = self._scorer([task.model_copy(update={"subject": text}) for text in own])
            for text, value in zip(own, found, strict=True):
                scores[number, text] = _finite(value, self._rows[number])
        return scores


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
