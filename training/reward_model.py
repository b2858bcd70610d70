"""Judge-as-a-Reward (section 7): the judge with a scalar head and a sigmoid, trained to order a context's candidates.

    recgpt train reward --texts runs/judge/texts.jsonl --model MODEL --out runs/train/reward

The candidates of one context share their prompt up to the candidate: it is read once, and each candidate sees it and
itself alone.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from langchain_core.messages import BaseMessage
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from agents.judging import reward_messages
from agents.schemas import JudgeTask
from eval.agreement import GRADES
from eval.judged import JudgedText, Split
from tools.machine import model_type
from tools.models import ADAPTER_WEIGHTS, base_digest, model_path, sha256, weights_name
from training.runs import claim, run_trainer, trainer_arguments

Loss = Literal["listwise", "pointwise"]
T = TypeVar("T")


@dataclass(frozen=True)
class RewardRecipe:
    """Hyper-parameters; the report gives none, these are written on the card."""

    loss: Loss = "listwise"
    temperature: float = 0.1
    """Of the list-wise loss. Scores lie between 0 and 1: at 1, as section 7 has it, the best candidate is never more
    than e times as likely as the worst, and what the loss can teach is soon used up."""
    seed: int = 7
    rank: int = 16
    alpha: int = 32
    layers: int = 10
    """The last so many layers are adapted: nothing below them needs a gradient."""
    learning_rate: float = 1e-3
    warmup_steps: int = 8
    accumulate: int = 8
    epochs: float = 2.0
    max_length: int = 2048
    evaluate_every: int = 10
    validation_contexts: int = 16


@dataclass(frozen=True)
class Packed:
    """A context as one sequence: the shared prefix, then what each candidate adds to it."""

    ids: list[int]
    shared: int
    """Tokens of the prefix."""
    ends: list[int]
    """Place of the last token of each candidate, where its score is read."""
    grades: list[int]
    """Of each candidate on `GRADES`."""


def listwise_loss(scores: Tensor, grades: Tensor, temperature: float = 1.0) -> Tensor:
    """`L_RM` of section 7 over one context: `S > A > B`.

    `- sum_{g in {S, A}} sum_{y in Y_g} log( exp f(y) / (exp f(y) + sum_{g' < g} sum_{y' in Y_g'} exp f(y')) )`

    Of the scores 0.9 (Superior), 0.5 (Average), 0.1 (Bad) it is
    `log(1 + e^-0.4 + e^-0.8) + log(1 + e^-0.4) = 1.2662`.

    Args:
        scores: f, after the sigmoid (n,).
        grades: 0 Bad, 1 Average, 2 Superior (n,).
        temperature: what scores are divided by; section 7 has none.
    """
    scores = scores / temperature
    lower = grades[None, :] < grades[:, None]
    below = scores[None, :].expand(len(scores), -1).masked_fill(~lower, float("-inf"))
    denominators = torch.logsumexp(torch.cat([scores[:, None], below], dim=1), dim=1)
    return ((denominators - scores) * (grades > 0)).sum()


def pointwise_loss(scores: Tensor, grades: Tensor) -> Tensor:
    """The variant that scores each candidate for itself: cross-entropy with 1 (Superior), 1/2 (Average) and 0 (Bad).

    Args:
        scores: f, after the sigmoid (n,).
        grades: 0 Bad, 1 Average, 2 Superior (n,).
    """
    return binary_cross_entropy(scores, grades.to(scores.dtype) / (len(GRADES) - 1), reduction="sum")


def pack_context(texts: Sequence[JudgedText], tokenizer: Any) -> Packed:  # noqa: ANN401 (transformers')
    """Graded candidates of one context, packed in their order."""
    grades = [GRADES.index(text.grade) for text in texts if text.grade]
    return _pack_tasks([text.task for text in texts], grades, tokenizer)


def _pack_tasks(tasks: Sequence[JudgeTask], grades: Sequence[int], tokenizer: Any) -> Packed:  # noqa: ANN401
    """Candidates of one context, packed in their order; without grades where they have none."""
    told = [_chat(tokenizer, messages) for messages in reward_messages(tasks)]
    return pack([tokenizer(text)["input_ids"] for text in told], grades)


def pack(tokens: Sequence[Sequence[int]], grades: Sequence[int]) -> Packed:
    """Sequences that begin alike as one, what they share only once.

    Args:
        tokens: of each candidate, prompt and all.
        grades: of each candidate.
    """
    shortest = min(len(own) for own in tokens)
    same = (place for place in range(shortest - 1) if len({own[place] for own in tokens}) > 1)
    shared = next(same, shortest - 1)
    ids = list(tokens[0][:shared])
    ends = []
    for own in tokens:
        ids += own[shared:]
        ends.append(len(ids) - 1)
    return Packed(ids, shared, ends, list(grades))


def packed_mask(packed: Packed, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What each token sees, and its position: a candidate sees the prefix and itself, and follows the prefix.

    Returns:
        The additive mask (1, 1, n, n), and positions (1, n).
    """
    size = len(packed.ids)
    owner = torch.full((size,), -1)
    positions = torch.arange(size)
    start = packed.shared
    for number, end in enumerate(packed.ends):
        owner[start : end + 1] = number
        positions[start : end + 1] = torch.arange(packed.shared, packed.shared + end + 1 - start)
        start = end + 1
    seen = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    seen &= torch.tril(torch.ones(size, size, dtype=torch.bool))
    mask = torch.zeros(size, size, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return mask[None, None], positions[None]


def score_packed(model: Any, packed: Packed) -> Tensor:  # noqa: ANN401 (a transformers model, with or without PEFT)
    """Scores f of all candidates of a context in one pass (n,), after the sigmoid, float32."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    dtype = next(base.parameters()).dtype
    device = next(base.parameters()).device
    mask, positions = (tensor.to(device) for tensor in packed_mask(packed, dtype))
    ids = torch.tensor([packed.ids], device=device)
    hidden = base.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    scores: Tensor = base.score(hidden[0, packed.ends]).squeeze(-1).float().sigmoid()
    return scores


def pair_accuracy(scores: Sequence[float], grades: Sequence[int]) -> tuple[float, int]:
    """Of one context's pairs of different grades how many the scores order rightly, ties for half, and of how many."""
    right, pairs = 0.0, 0
    for own, grade in zip(scores, grades, strict=True):
        for other, lower in zip(scores, grades, strict=True):
            if grade > lower:
                right += float(own > other) + 0.5 * float(own == other)
                pairs += 1
    return right, pairs


def read_contexts(
    texts: Sequence[JudgedText],
    split: Split,
    tokenizer: Any,  # noqa: ANN401 (transformers')
    max_length: int,
) -> tuple[list[Packed], int]:
    """Contexts of a split with candidates of at least two grades, and how many candidates did not fit.

    A context that is too long loses candidates in an order that their grades have no part in, and the facts that only
    these were judged by.
    """
    found: defaultdict[str, list[JudgedText]] = defaultdict(list)
    for text in texts:
        if text.split == split and text.grade:
            found[f"{text.task.kind}/{text.context}"].append(text)

    contexts, lost = [], 0
    for candidates in found.values():
        ordered = sorted(candidates, key=lambda text: hashlib.sha256(text.id.encode()).digest())
        context = _as_many_as_fit(ordered, partial(pack_context, tokenizer=tokenizer), max_length)
        lost += len(ordered) - (len(context.ends) if context else 0)
        if context and len(set(context.grades)) > 1:
            contexts.append(context)
    return contexts, lost


def pack_tasks(
    tasks: Sequence[JudgeTask],
    tokenizer: Any,  # noqa: ANN401 (transformers')
    max_length: int,
) -> list[Packed]:
    """Ungraded candidates of one context in their order, in as few sequences as hold them; none is left out.

    A candidate that is too long by itself has a sequence of its own.
    """
    packed, left = [], list(tasks)
    pack_some = partial(_pack_tasks, grades=[], tokenizer=tokenizer)
    while left:
        packed.append(_as_many_as_fit(left, pack_some, max_length) or pack_some(left[:1]))
        left = left[len(packed[-1].ends) :]
    return packed


def _as_many_as_fit(
    candidates: Sequence[T], pack_some: Callable[[Sequence[T]], Packed], max_length: int
) -> Packed | None:
    """As many of the first candidates as fit; None where not even one does.

    Twice as many are tried while they fit: of hundreds, whose facts take long to write out, only a few do.
    """
    fitting, count = None, 1
    while True:
        packed = pack_some(candidates[:count])
        if len(packed.ids) > max_length:
            break
        fitting = packed
        if count >= len(candidates):
            return fitting
        count *= 2
    between = range(count // 2 + 1, min(count, len(candidates)))
    more = bisect(between, max_length, key=lambda one: len(pack_some(candidates[:one]).ids))
    return pack_some(candidates[: between[more - 1]]) if more else fitting


def _chat(tokenizer: Any, messages: Sequence[BaseMessage]) -> str:  # noqa: ANN401
    told = [{"role": "system" if one.type == "system" else "user", "content": one.content} for one in messages]
    return str(tokenizer.apply_chat_template(told, tokenize=False))


def train_reward(
    texts: Sequence[JudgedText],
    texts_sha256: Sequence[str],
    model: str,
    out: Path,
    recipe: RewardRecipe,
    report: Callable[[str], None],
    command: str,
) -> dict[str, object]:
    """Train head and LoRA adapter and write them with their card to `out/adapter`.

    Args:
        texts: judged texts of all splits.
        texts_sha256: of their files.
        model: the judge: a model made here, a directory or a hub name.
        out: checkpoints, TensorBoard logs and the weights; a run that stopped there goes on if it is the same one.
        recipe: hyper-parameters.
        report: called with a sentence.
        command: for the card.
    """
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    path = model_path(model, report)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(path)
    judge = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=model_type())
    below = "|".join(str(layer) for layer in range(judge.config.num_hidden_layers - recipe.layers))
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules="all-linear",
        exclude_modules=rf".*\.layers\.({below})\..*" if below else None,
        task_type="SEQ_CLS",
    )
    tuned = get_peft_model(judge, lora)
    contexts: dict[str, list[Packed]] = {}
    lost = 0
    for split in get_args(Split)[:2]:
        contexts[split], missing = read_contexts(texts, split, tokenizer, recipe.max_length)
        lost += missing
    claim(out, {"texts_sha256": list(texts_sha256), "model": weights_name(model), "recipe": asdict(recipe)})
    loss_of = pointwise_loss if recipe.loss == "pointwise" else partial(listwise_loss, temperature=recipe.temperature)

    class RewardTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
        """One context a batch."""

        def compute_loss(
            self,
            model: Any,  # noqa: ANN401
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Tensor | None = None,
        ) -> Any:  # noqa: ANN401 (a loss, or a pair with the outputs)
            """Loss a candidate, so that large contexts don't outweigh small ones."""
            packed = inputs["packed"]
            scores = score_packed(model, packed)
            loss = loss_of(scores, torch.tensor(packed.grades, device=scores.device)) / len(packed.grades)
            return (loss, {"scores": scores}) if return_outputs else loss

    arguments = TrainingArguments(
        **trainer_arguments(out, recipe),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=recipe.accumulate,
        num_train_epochs=recipe.epochs,
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["packed"],
    )
    trainer = RewardTrainer(
        model=tuned,
        args=arguments,
        train_dataset=Dataset.from_list([asdict(one) for one in contexts["train"]]),
        eval_dataset=Dataset.from_list([asdict(one) for one in contexts["validation"][: recipe.validation_contexts]]),
        data_collator=lambda rows: {"packed": Packed(**rows[0])},
    )
    report(f"{len(contexts['train']):,} contexts; {lost} candidates of long contexts did not fit")
    told = run_trainer(trainer, out, report)
    adapter = out / "adapter"
    trainer.model.to(torch.bfloat16)
    trainer.save_model(str(adapter))
    card: dict[str, object] = {
        "command": command,
        "sha256": sha256(adapter / ADAPTER_WEIGHTS),
        "base": model,
        "base_sha256": base_digest(path),
        "texts_sha256": list(texts_sha256),
        "recipe": asdict(recipe),
        "contexts": len(contexts["train"]),
        "candidates_that_did_not_fit": lost,
        **told,
    }
    (adapter / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def open_reward(adapter: Path, report: Callable[[str], None]) -> tuple[Any, Any]:
    """A trained reward model and its tokenizer.

    Raises:
        ModelFilesError: the weights are not those of their card, or the card is of another base model.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = model_path(str(adapter), report)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def score_contexts(model: Any, contexts: Sequence[Packed], report: Callable[[str], None]) -> list[list[float]]:  # noqa: ANN401
    """Scores of the candidates of each context."""
    scores = []
    with torch.inference_mode():
        for number, packed in enumerate(contexts, 1):
            scores.append(score_packed(model, packed).tolist())
            report(f"{number} of {len(contexts)} contexts")
    return scores
