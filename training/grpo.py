"""Reinforcement of an agent by GRPO: TRL's GRPOTrainer on the tuned agents' adapter (sections 5 and 6).

    recgpt train grpo --agent expert --data runs/train/data --out runs/train/grpo

The advantage of an answer is its reward less the mean of its group, `A_i = R_i - mean(R)`; the KL penalty is to the
adapter as it was. A run that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from agents.schemas import ExplanationText, JudgeTask, TagList, tags_schema
from tools.errors import DatasetError, ModelFilesError, SettingError, TrainingError
from tools.machine import model_type
from tools.models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_digest,
    adapter_of,
    base_digest,
    base_of,
    model_path,
    sha256,
)
from training.hybrid import TAGS
from training.reward_model import RewardRecipe, open_reward, pack_tasks, score_packed
from training.rewards import (
    BUFFER,
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
from training.rollout import Grammars, generating, merged, server_rollout
from training.runs import claim, run_trainer, trainer_arguments
from training.sft import read_examples
from training.shared_prefix import read_answers

Agent = Literal["expert", "explainer"]
Shaping = Literal["crs", "sum"]

HISTORY = "history.json"
"""What a run logged so far, see `training.curves`."""
BUFFER_FILE = "recent.json"
"""In a checkpoint: the buffer of recent explanations."""
ALIGNMENT = "alignment.json"
"""In a run: what the reward model gave to the tags."""
NOTHING = Parts(0.0, 0.0, 0.0, 0.0)
"""Of an answer that is not valid."""

EQUAL = Parts(0.25, 0.25, 0.25, 0.25)


@dataclass(frozen=True)
class GrpoRecipe:
    """Hyper-parameters; the report gives none, these are written on the adapter's card."""

    seed: int = 7
    group: int = 8
    """G, answers to one prompt."""
    prompts: int = 4
    """Of one step."""
    steps: int = 40
    micro: int = 8
    """Answers that the gradient is computed of at a time, which bounds memory; whole groups read their prompt once."""
    learning_rate: float = 2e-4
    warmup_steps: int = 5
    beta: float = 0.01
    """Weight of the KL penalty."""
    temperature: float = 1.0
    listed: int = 10
    """Tags of one expert that the evaluation counts: a third of HR@30, of three experts."""
    tag_tokens: int = 220
    """Bound of an expert's answer."""
    text_tokens: int = 96
    """Bound of an explanation."""
    start: float = 0.02
    """Share of the training answers that each gate of CRS would keep out at the first step, see `thresholds_at`."""
    end: float = 0.15
    """At the last step and in every evaluation."""
    weights: Parts = EQUAL
    """Of the parts in SUM."""
    text_diversity: float = 2.6
    """Threshold of an explanation's diversity reward: three tenths of the training texts have less."""
    evaluate_every: int = 10
    validation_prompts: int = 24
    validation_answers: int = 2
    """To each of these prompts; the trainer's own are by the same dice at each evaluation."""


CPU = GrpoRecipe()
GPU = GrpoRecipe(
    group=16,
    prompts=8,
    steps=12,
    micro=16,
    learning_rate=3e-4,
    warmup_steps=0,
    text_tokens=64,
    evaluate_every=4,
    validation_prompts=48,
    validation_answers=4,
)
RECIPES: dict[str, dict[Agent, GrpoRecipe]] = {
    "cpu": {"expert": CPU, "explainer": CPU},
    "gpu": {"expert": replace(GPU, prompts=12, steps=10, micro=32, evaluate_every=5), "explainer": GPU},
}
"""By machine and agent; those of a GPU are for minutes of one that is shared.

With few steps none is spent on warming up: the first would have a learning rate of 0.
"""


@dataclass(frozen=True)
class Row:
    """A prompt and what its answers are rewarded by."""

    name: str
    """Agent, household and moment, for a person to find it by."""
    prompt: list[dict[str, str]]
    answer: str
    """Of the training data."""
    tasks: list[JudgeTask]
    """Of an expert one a tag of its shelf; of an explainer one, without its text."""
    bought: list[str]
    new: list[str]

    @property
    def tags(self) -> int:
        """How many tags the prompt asks for."""
        return len(json.loads(self.answer)["tags"])


def read_rows(data: Path, agent: Agent) -> tuple[dict[str, list[Row]], str]:
    """Rows of an agent by split (`train`, `validation`) that an answer can be rewarded for, and the data's hash.

    Raises:
        DatasetError: there are none, or the file is not the one of its card.
    """
    table, digest = read_examples(data, agent)
    if missing := {"hybrid", "bought", "new", "judged"} - set(table.columns):
        raise DatasetError(
            f"{data}/examples.parquet lacks {', '.join(sorted(missing))}: it tells nothing that answers could be "
            "rewarded by; make it again with `recgpt train data`"
        )
    table = table.filter(~pl.col("hybrid"), pl.col("judged") != "")
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in table.iter_rows(named=True):
        read = _row(row)
        # An expert's tags are of its shelf: where nothing of that was bought next, all answers earn the same.
        if agent != "expert" or any(task.subject in read.bought for task in read.tasks):
            rows[row["split"]].append(read)
    if empty := [split for split, own in rows.items() if not own]:
        raise DatasetError(
            f"{data} has no {' and no '.join(empty)} example of the agent {agent} that an answer can be rewarded "
            "for; make more with `recgpt train data`"
        )
    return rows, digest


def _row(row: Mapping[str, Any]) -> Row:
    name = f"{row['agent']} of household {row['user_id']} at {row['as_of']:%Y-%m-%d %H:%M}"
    try:
        tasks = TypeAdapter(list[JudgeTask]).validate_json(row["judged"])
    except ValidationError as error:
        raise DatasetError(f"the row {name} has no valid tasks of the judge: {error}") from error
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    prompt = [*system, {"role": "user", "content": row["user"]}]
    return Row(name, prompt, row["answer"], tasks, list(row["bought"] or ()), list(row["new"] or ()))


def read_vectors(data: Path) -> dict[str, NDArray[np.float32]]:
    """Embeddings of the catalogue's leaves as tags (d,), unit vectors.

    Raises:
        DatasetError: there are none.
    """
    try:
        table = pl.read_parquet(data / TAGS)
        return {text: np.asarray(vector, dtype=np.float32) for text, vector in table.select("text", "vector").rows()}
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetError(
            f"{data / TAGS} holds no vectors of tags ({error}); make them with `recgpt train data`"
        ) from error


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


def train_policy(
    agent: Agent,
    data: Path,
    adapter: str,
    reward: str,
    shaping: Shaping,
    out: Path,
    recipe: GrpoRecipe,
    base_url: str | None,
    api_key: str,
    report: Callable[[str], None],
    command: str,
) -> dict[str, object]:
    """Continue an adapter by GRPO and write it with its card to `out/adapter`.

    Args:
        agent: whose prompts are answered.
        data: what `recgpt train data` wrote.
        adapter: what it starts from and is held to by the KL penalty: the default model, or an adapter's directory.
        reward: the reward model, by name or directory.
        shaping: how an expert's rewards become one.
        out: checkpoints, TensorBoard logs and the adapter; a run that stopped there goes on if it is the same one.
        recipe: hyper-parameters.
        base_url: of a vLLM server on this machine that answers in the trainer's place; None: the trainer generates.
        api_key: of that server.
        report: called with a sentence.
        command: for the card.

    Raises:
        DatasetError: there is no data, or it is not that of its card.
        ModelFilesError: adapter or reward model are missing, damaged, or of another base model.
        TrainingError: a reward is no number.
        OutputError: a checkpoint could not be written, or `out` holds another run.
    """
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig

    rows, digest = read_rows(data, agent)
    start, path = _opened(adapter, "CAUSAL_LM", report)
    judged, _ = _opened(reward, "SEQ_CLS", report)
    run: dict[str, object] = {
        "agent": agent,
        "data_sha256": digest,
        "base": base_of(start),
        "adapter": adapter,
        "adapter_sha256": adapter_digest(start),
        "reward": reward,
        "reward_sha256": adapter_digest(judged),
        "shaping": shaping if agent == "expert" else None,
        "rollouts": "vLLM server" if base_url else "transformers",
        "recipe": asdict(recipe),
    }
    claim(out, run)
    train_rows, order, held_out_rows = _drawn(rows, recipe)
    used = [*train_rows, *held_out_rows]
    train_set = Dataset.from_list([{"prompt": used[n].prompt, "row": n} for n in order])
    held_out = Dataset.from_list(
        [{"prompt": row.prompt, "row": n} for n, row in enumerate(held_out_rows, len(train_rows))]
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    open_model = partial(open_scorer, reward, device, report)
    rewards: ExpertRewards | ExplainerRewards
    if agent == "expert":
        scores = score_shelves(used, open_model, out / ALIGNMENT, report)
        rewards = ExpertRewards(used, scores, read_vectors(data), recipe, shaping, len(train_rows))
        run["thresholds"] = [asdict(limits) for limits in rewards.thresholds]
    else:
        written = [ExplanationText.model_validate_json(row.answer).text for row in rows["train"]]
        rewards = ExplainerRewards(used, open_model(), recipe, written[:BUFFER])

    tokenizer = AutoTokenizer.from_pretrained(path)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=model_type())
    policy = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    step = recipe.group * recipe.prompts
    arguments = trainer_arguments(out, recipe) | {
        "metric_for_best_model": "eval_reward",
        "greater_is_better": True,
        "logging_steps": 1,
    }
    config = GRPOConfig(
        **arguments,
        num_train_epochs=1,
        per_device_train_batch_size=recipe.micro,
        gradient_accumulation_steps=step // recipe.micro,
        # All at once: TRL means over batches, and small ones would count as much as large ones.
        per_device_eval_batch_size=len(held_out_rows) * recipe.validation_answers,
        num_generations=recipe.group,
        num_generations_eval=recipe.validation_answers,
        max_completion_length=recipe.tag_tokens if agent == "expert" else recipe.text_tokens,
        temperature=recipe.temperature,
        beta=recipe.beta,
        scale_rewards="none",
        loss_type="dr_grpo",
        shuffle_dataset=False,
        eval_on_start=True,
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
    )

    class History(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        """Keeps the log where no rotation of checkpoints removes it."""

        def on_save(self, args: object, state: Any, control: object, **kwargs: object) -> None:  # noqa: ANN401
            (out / HISTORY).write_text(json.dumps(state.log_history))

        on_train_end = on_save

    trainer = policy_trainer()(
        rewards,
        model=policy,
        reward_funcs=rewards.reward,
        args=config,
        train_dataset=train_set,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[History()],
        rollout_func=server_rollout(base_url, api_key, out / "rollout") if base_url else None,
    )
    report(f"{len(train_rows):,} prompts, {recipe.steps} steps of {recipe.prompts} times {recipe.group} answers")
    told = run_trainer(trainer, out, report, "reward")
    trained = out / "adapter"
    # Halved: what is served is bfloat16 anyway.
    trainer.model.to(torch.bfloat16)
    trainer.save_model(str(trained))
    card: dict[str, object] = {
        "command": command,
        "sha256": sha256(trained / ADAPTER_WEIGHTS),
        "base_sha256": base_digest(path),
        **run,
        "examples": len(train_rows),
        "tokens": int(trainer.state.num_input_tokens_seen),
        **told,
    }
    measured = told["validation_reward"]
    assert isinstance(measured, dict)
    if measured and measured["best"] <= measured["first"]:
        report(f"no step earned more on validation than {adapter} itself, {measured['first']:.3f}: keep that one")
    (trained / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _drawn(rows: Mapping[str, Sequence[Row]], recipe: GrpoRecipe) -> tuple[list[Row], list[int], list[Row]]:
    """Rows to train on, the order in which all steps together meet them, and rows to evaluate on.

    The order is drawn here: TRL draws another one in each epoch, and the first again when a run goes on.
    """
    generator = np.random.default_rng(recipe.seed)
    wanted = recipe.steps * recipe.prompts
    drawn: list[int] = []
    while len(drawn) < wanted:
        drawn += generator.permutation(len(rows["train"])).tolist()
    place = {number: place for place, number in enumerate(dict.fromkeys(drawn[:wanted]))}
    held = generator.permutation(len(rows["validation"]))[: recipe.validation_prompts]
    return (
        [rows["train"][number] for number in place],
        [place[number] for number in drawn[:wanted]],
        [rows["validation"][number] for number in held],
    )


def _opened(model: str, task: str, report: Callable[[str], None]) -> tuple[Path, str]:
    """An adapter's directory, and its base as a directory or hub name.

    Raises:
        SettingError: it is no adapter for this task.
        ModelFilesError: it is damaged, or of another base model.
    """
    adapter = adapter_of(model)
    kind = json.loads((adapter / ADAPTER_CONFIG).read_text())["task_type"] if adapter else "no adapter"
    if adapter is None or kind != task:
        what = "a reward model, from `recgpt train reward`" if task == "SEQ_CLS" else "one from `recgpt train sft`"
        raise SettingError(f"{model!r} is {kind}, expected an adapter {task}: {what}")
    adapter_digest(adapter)
    path = model_path(base_of(adapter), report)
    expected = json.loads((adapter / "card.json").read_text())["base_sha256"]
    if (found := base_digest(path)) != expected:
        raise ModelFilesError(
            f"{adapter} was trained on a model with SHA-256 {expected}, {path} has {found}: train it anew"
        )
    return adapter, path


def policy_trainer() -> type[Any]:
    """GRPOTrainer with what a continued adapter and gated rewards need; all of the algorithm is TRL's."""
    from trl import GRPOTrainer
    from trl.trainer.utils import split_tensor_dict

    class PolicyTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL has no types
        """See `policy_trainer`."""

        def __init__(self, rewards: Rewards, **arguments: Any) -> None:  # noqa: ANN401
            super().__init__(**arguments)
            self._rewards = rewards
            self._grammars = Grammars(self.processing_class, self.model.config.vocab_size)
            self._answered: list[dict[str, Any]] = []
            """Parts of the step at hand."""
            self.asked: list[int] = []
            """Rows of the prompts that are answered now, for a rollout of a server too."""
            # TRL keeps the adapter as it was beside the policy, under the name `ref`. With it in a checkpoint, as a
            # subdirectory, transformers loads subdirectories alone when a run goes on, and the policy is lost; it is
            # made anew from the same adapter anyway, as `claim` makes sure.
            self.model.save_pretrained = partial(self.model.save_pretrained, selected_adapters=["default"])

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """TRL's, by the same dice each time, and without a trace in those of the training."""
            devices = [self.args.device] if self.args.device.type == "cuda" else []
            self._rewards.evaluating = True
            try:
                with torch.random.fork_rng(devices):
                    torch.manual_seed(self.args.seed)
                    return super().evaluate(*args, **kwargs)
            finally:
                self._rewards.evaluating = False

        def schema(self, row: int) -> dict[str, Any]:
            """What an answer to a row is held to, as JSON schema."""
            return self._rewards.schema(row).model_json_schema()

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """TRL's, by merged weights: half the kernels a token, and the form in which a CPU serves the policy.

            Answers are held to the schema as they are by the server: a small model counts badly, and a list of nineteen
            tags where twenty were asked for would earn nothing. The gradient is that of the model's own probabilities.
            """
            policy = self.accelerator.unwrap_model(self.model)
            held = self._grammars.processor([self.schema(row) for row in self.asked])
            with merged(policy), generating(policy, held):
                return super()._generate_single_turn(*args, **kwargs)

        def _prepare_inputs(self, generation_batch: Any) -> Any:  # noqa: ANN401
            """TRL's, but not shuffled: the answers of a group meet the model together: one prompt to read."""
            if not self.model.training:
                return super()._prepare_inputs(generation_batch)
            parts = self.args.steps_per_generation
            if not self._answered or self._step % parts == 0:
                self._answered = split_tensor_dict(self._generate_and_score_completions(generation_batch), parts)
            return self._answered[self._step % parts]

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,  # noqa: ANN401
            input_ids: Tensor,
            attention_mask: Tensor,
            logits_to_keep: int,
            batch_size: int | None = None,
            **others: object,
        ) -> tuple[Tensor, Tensor, None]:
            """TRL's, but each prompt is read once for all answers to it."""
            size = batch_size or len(input_ids)
            with self.accelerator.autocast():
                parts = [
                    read_answers(model, ids, mask, logits_to_keep)
                    for ids, mask in zip(torch.split(input_ids, size), torch.split(attention_mask, size), strict=True)
                ]
            logps, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
            return logps, entropies, None

        def _generate_and_score_completions(self, inputs: Any) -> Any:  # noqa: ANN401
            """TRL's, less the dead groups: those whose answers all have the same reward.

            Their advantages are 0 by TRL's own sum, but its KL term would still pull them to the reference, and its
            normaliser count them. TRL has no setting for that; what it has is `tool_mask`, which its loss multiplies
            with each token's part: 0 takes a dead group out, and where it is all/live for the others, the normaliser
            (which counts answers, dead or not) becomes that of the live ones.
            """
            self.asked = [one["row"] for one in inputs]
            made = super()._generate_and_score_completions(inputs)
            if not self.model.training:
                return made
            if "sampling_per_token_logps" in made:
                # Of the server, whose arithmetic is another one: TRL's clipped ratio makes up for the difference. A
                # server tells them as they are at temperature 1, which every recipe has.
                made["old_per_token_logps"] = made["sampling_per_token_logps"]
            live = (made["advantages"].view(-1, self.num_generations).abs() > 1e-6).any(dim=1).float()
            self._metrics["train"]["dead_groups"].append(1.0 - live.mean().item())
            weight = live / live.mean().clamp(min=1e-6)
            shape = made["completion_mask"].shape
            made["tool_mask"] = weight.repeat_interleave(self.num_generations)[:, None].expand(shape).contiguous()
            return made

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """TRL's; of answers in dead groups alone it is 0, without a pass through the model and without a KL.

            No gradient is made where a whole step is dead, so that its momentum doesn't move the policy either.
            """
            if "tool_mask" in inputs and not inputs["tool_mask"].any():
                return torch.zeros((), device=self.args.device, requires_grad=True)
            return super().compute_loss(model, inputs, *args, **kwargs)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
            """The buffer of explanations first: a checkpoint is whole when TRL's part is."""
            if self._rewards.recent is not None:
                checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                checkpoint.mkdir(parents=True, exist_ok=True)
                (checkpoint / BUFFER_FILE).write_text(json.dumps(self._rewards.recent.texts))
            super()._save_checkpoint(model, trial)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if self._rewards.recent is not None:
                texts = json.loads((Path(resume_from_checkpoint) / BUFFER_FILE).read_text())
                self._rewards.recent = filled(texts)

    return PolicyTrainer
