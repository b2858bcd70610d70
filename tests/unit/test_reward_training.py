"""The reward model's trainer on a tiny model: it learns to order candidates, and goes on after a kill."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from agents.schemas import Fact, Grade, JudgeTask
from eval.judged import JudgedText
from tools.errors import ModelFilesError, OutputError
from training.reward_model import RewardRecipe, open_reward, pair_accuracy, read_contexts, score_contexts, train_reward


@pytest.fixture(autouse=True)
def own_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is merged here is not kept."""
    monkeypatch.setattr("tools.models.MODELS_DIRECTORY", tmp_path / "models")


RECIPE = RewardRecipe(rank=4, learning_rate=5e-3, warmup_steps=1, accumulate=2, epochs=4, evaluate_every=8)
GRADED: dict[str, Grade] = {"fresh milk for the week": "Superior", "milk": "Average", "a stone of noise": "Bad"}


def texts() -> list[JudgedText]:
    made = []
    for number in range(20):
        for subject, grade in GRADED.items():
            task = JudgeTask(
                user_id=f"u{number}",
                kind="tags",
                subject_id=subject,
                subject=subject,
                facts=[Fact(name="profile", text=f"household {number}")],
            )
            made.append(
                JudgedText(
                    id=f"{number}/{subject}",
                    split="train" if number < 12 else "validation" if number < 16 else "test",
                    source="s",
                    context=f"u{number}@2017-10-01T00:00:00",
                    task=task,
                    labels={},
                    evidence={},
                    grade=grade,
                )
            )
    return made


def say(message: str) -> None:
    """Progress that nobody reads."""


def accuracy(adapter: Path) -> float:
    model, tokenizer = open_reward(adapter, say)
    contexts, lost = read_contexts(texts(), "test", tokenizer, RECIPE.max_length)
    assert lost == 0
    scores = score_contexts(model, contexts, say)
    assert all(0 <= score <= 1 for own in scores for score in own)
    counted = [pair_accuracy(own, one.grades) for own, one in zip(scores, contexts, strict=True)]
    return sum(right for right, _ in counted) / sum(pairs for _, pairs in counted)


def test_a_long_context_loses_candidates_and_no_more_than_it_must(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    own = [text for text in texts() if text.context == texts()[0].context]
    own = [text.model_copy(update={"split": "test"}) for text in own]
    whole, lost = read_contexts(own, "test", tokenizer, 10_000)
    assert lost == 0 and len(whole[0].ends) == 3
    size = len(whole[0].ids)
    assert read_contexts(own, "test", tokenizer, size)[1] == 0
    shorter, lost = read_contexts(own, "test", tokenizer, size - 1)
    assert lost == 1 and [len(context.ends) for context in shorter] == [2]
    assert read_contexts(own, "test", tokenizer, 5) == ([], 3)


def test_it_learns_to_order_and_goes_on_after_a_kill(tiny_model: str, tmp_path: Path) -> None:
    whole = train_reward(texts(), ["x"], tiny_model, tmp_path / "whole", RECIPE, say, "command")
    losses = whole["validation_loss"]
    assert isinstance(losses, dict) and losses["best"] < losses["first"]
    assert accuracy(tmp_path / "whole" / "adapter") > 0.9
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-16", killed / "checkpoint-16")
    shutil.copy(tmp_path / "whole" / "run.json", killed)
    with pytest.raises(OutputError, match="recipe"):
        train_reward(texts(), ["x"], tiny_model, killed, replace(RECIPE, loss="pointwise"), say, "command")
    again = train_reward(texts(), ["x"], tiny_model, killed, RECIPE, say, "command")
    assert again["steps"] == whole["steps"]
    assert again["validation_loss"]["best"] == pytest.approx(losses["best"], abs=2e-2)  # type: ignore[index]


def test_the_point_wise_variant_learns_too(tiny_model: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, loss="pointwise")
    train_reward(texts(), ["x"], tiny_model, tmp_path, recipe, say, "command")
    assert accuracy(tmp_path / "adapter") > 0.9


def test_a_reward_model_of_another_base_is_refused(tiny_model: str, tmp_path: Path) -> None:
    train_reward(texts(), ["x"], tiny_model, tmp_path, replace(RECIPE, epochs=1), say, "command")
    card = json.loads((tmp_path / "adapter" / "card.json").read_text())
    (tmp_path / "adapter" / "card.json").write_text(json.dumps(card | {"base_sha256": "0" * 64}))
    with pytest.raises(ModelFilesError, match="train it anew"):
        open_reward(tmp_path / "adapter", say)


def test_a_context_that_is_too_long_loses_candidates_and_says_so(tiny_model: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    whole, lost = read_contexts(texts(), "test", tokenizer, 2048)
    assert len(whole) == 4 and lost == 0
    longest = max(len(context.ids) for context in whole)
    shorter, lost = read_contexts(texts(), "test", tokenizer, longest - 1)
    assert lost >= 1 and all(len(context.ids) < longest for context in shorter)
    assert read_contexts(texts(), "test", tokenizer, 10)[0] == []
