"""GRPO on a tiny model: rewards by hand, a run that goes on as if nothing had happened, and what is refused."""

import errno
import hashlib
import json
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.trainer.utils import add_fused_lm_head
from typer.testing import CliRunner

from agents.context import Context
from agents.schemas import Fact, JudgeTask
from recgpt.cli import app
from tests.conftest import AS_OF
from tests.unit.test_reward_training import RECIPE as REWARD_RECIPE
from tests.unit.test_reward_training import texts as judged_texts
from tools.dataset import open_dataset
from tools.embedding import open_embedder
from tools.errors import DatasetError, ModelFilesError, OutputError, ServerError, SettingError, TrainingError
from tools.models import base_digest, sha256
from training import grpo, grpo_rewards
from training.curves import PANELS, curve, draw_curves, read_history
from training.grpo import train_policy
from training.grpo_recipe import Agent, GrpoRecipe
from training.grpo_rewards import (
    ExpertRewards,
    ExplainerRewards,
    TagFacts,
    TagParts,
    answer_thresholds,
    open_scorer,
)
from training.grpo_rows import Row, read_rows, read_vectors
from training.grpo_trainer import policy_trainer
from training.reward_model import train_reward
from training.rewards import Parts, Thresholds
from training.rollout import Grammars, generating, merged, server_rollout
from training.shared_prefix import read_answers

RECIPE = GrpoRecipe(
    group=4,
    prompts=2,
    steps=4,
    micro=4,
    learning_rate=5e-3,
    warmup_steps=1,
    listed=1,
    tag_tokens=6,
    text_tokens=6,
    evaluate_every=2,
    validation_prompts=4,
    validation_answers=2,
)
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TAGS = ["white milk", "bread", "dish soap"]
VECTORS = {tag: np.eye(3, dtype=np.float32)[place] for place, tag in enumerate(TAGS)}
SCORES = {"white milk": 0.2, "bread": 0.6, "dish soap": 0.8}


def say(message: str) -> None:
    """Progress that nobody reads."""


def task(kind: str, subject: str) -> JudgeTask:
    return JudgeTask(
        user_id="u", kind=kind, subject_id="x", subject=subject, facts=[Fact(name="profile", text="two people")]
    )  # type: ignore[arg-type]


def expert() -> Row:
    name, written = "expert of household u1 at 2017-11-17 09:00", '{"tags":["white milk","bread"]}'
    return Row(name, "u1", AS_OF, [], written, ["bread", "dish soap"], ["dish soap"], None)


def explainer() -> Row:
    return replace(expert(), judged=task("explanations", ""))


def answer(*tags: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": json.dumps({"tags": tags})}]


def text(words: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": json.dumps({"text": words})}]


def write_data(directory: Path, **columns: list[object]) -> Path:
    """Training data of forty experts and forty explainers, with `columns` in the place of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(80):
        agent = ("expert", "explainer")[number % 2]
        shelf, judged = (0, "") if agent == "expert" else (None, task("explanations", "").model_dump_json())
        written = '{"tags":["white milk","bread"]}' if agent == "expert" else '{"text":"Fresh bread for the week."}'
        rows.append(
            {
                "agent": agent, "kind": "behaviour", "user_id": f"u{number}", "as_of": AS_OF,
                "split": "validation" if number < 20 else "train", "system": "You write.", "user": f"Need {number}",
                "answer": written, "targets": 2, "new_targets": 1, "hybrid": number in (30, 31),
                "bought": ["bread"] if agent == "expert" else [], "new": [],
                "shelf": 24 if number == 32 else shelf, "judged": "" if number == 33 else judged,
            }
        )  # fmt: skip
    table = pl.DataFrame(rows, schema_overrides={"bought": pl.List(pl.String), "new": pl.List(pl.String)})
    table = table.with_columns(**{name: pl.Series(values) for name, values in columns.items()})
    table.write_parquet(directory / "examples.parquet")
    pl.DataFrame({"text": TAGS, "vector": [VECTORS[tag].tolist() for tag in TAGS]}).write_parquet(
        directory / "tags.parquet"
    )
    digest = hashlib.sha256((directory / "examples.parquet").read_bytes()).hexdigest()
    (directory / "card.json").write_text(json.dumps({"sha256": digest}))
    return directory


@pytest.fixture(autouse=True)
def own_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is merged here is not kept."""
    monkeypatch.setattr("tools.models.MODELS_DIRECTORY", tmp_path / "models")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the default model's kind with a vocabulary of bytes: with that of 49,152 a step takes seconds."""
    directory = tmp_path_factory.mktemp("small")
    bytes_alone = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(LETTERS)}, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), **size, num_key_value_heads=2, **special)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def adapter(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on the tiny model, as `recgpt train sft` leaves it."""
    directory = tmp_path_factory.mktemp("sft") / "adapter"
    torch.manual_seed(1)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16), lora).save_pretrained(directory)
    write_card(directory, small_model)
    return directory


@pytest.fixture(scope="module")
def scorer_adapter(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model on the tiny model, hardly trained."""
    out = tmp_path_factory.mktemp("reward")
    train_reward(judged_texts(), ["x"], small_model, out, replace(REWARD_RECIPE, epochs=0.5), say, "command")
    return out / "adapter"


def write_card(directory: Path, base: str, **other: object) -> None:
    digest = sha256(directory / "adapter_model.safetensors")
    card = {"sha256": digest, "base": base, "base_sha256": base_digest(base)}
    (directory / "card.json").write_text(json.dumps(card | other))


@pytest.fixture
def by_letters(monkeypatch: pytest.MonkeyPatch, small_dir: Path) -> None:
    """The tiny model writes no JSON: what it writes is valid as it is, and has its rewards from its letters."""

    def parts(self: TagParts, numbers: Sequence[int], texts: Sequence[str]) -> list[Parts]:
        return [Parts(accuracy=sum(map(ord, text)) % 11 / 10, alignment=1, diversity=1, length=1) for text in texts]

    monkeypatch.setattr(TagParts, "of", parts)
    monkeypatch.setattr(grpo, "open_dataset", lambda _: open_dataset(small_dir))
    monkeypatch.setattr(grpo_rewards, "_explanation", lambda answer: answer or None)
    monkeypatch.setattr(grpo, "open_scorer", lambda *_: lambda tasks: [len(one.subject) % 17 / 17 for one in tasks])
    monkeypatch.setattr(Grammars, "processor", lambda *_: lambda ids, scores: scores)


def run(agent: Agent, data: Path, adapter: Path, reward: Path, out: Path, **other: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"shaping": "crs", "recipe": RECIPE, "base_url": None, "api_key": "EMPTY"} | other
    options = {"report": say} | options
    return train_policy(
        agent, data, Path("shop"), str(adapter), str(reward), out=out, command="recgpt train grpo", **options
    )


# ---- rows -----------------------------------------------------------------------------------------------------


def test_rows_are_those_that_can_be_rewarded(data: Path) -> None:
    rows, digest = read_rows(data, "expert")
    assert (len(rows["train"]), len(rows["validation"])) == (28, 10)  # one is hybrid, one has a shelf
    assert digest == json.loads((data / "card.json").read_text())["sha256"]
    assert rows["train"][0].prompt[0] == {"role": "system", "content": "You write."}
    assert (rows["train"][0].user_id, rows["train"][0].as_of, rows["train"][0].tags) == ("u20", AS_OF, 2)
    explainers = read_rows(data, "explainer")[0]["train"]
    assert len(explainers) == 28 and explainers[0].judged == task("explanations", "")


def test_data_that_can_not_be_rewarded_is_refused(data: Path, tmp_path: Path) -> None:
    pl.read_parquet(data / "examples.parquet").head(5).write_parquet(data / "examples.parquet")
    with pytest.raises(DatasetError, match="its card says"):
        read_rows(data, "expert")
    with pytest.raises(DatasetError, match="no train and no validation example"):
        read_rows(write_data(tmp_path / "text", judged=[""] * 80), "explainer")
    with pytest.raises(DatasetError, match="no train and no validation example"):
        read_rows(write_data(tmp_path / "shelves", shelf=[24] * 80), "expert")
    with pytest.raises(DatasetError, match="explainer of household u1 at 2017-11-17 09:00 has no valid task"):
        read_rows(write_data(tmp_path / "broken", judged=["[{}]"] * 80), "explainer")
    old = write_data(tmp_path / "old")
    pl.read_parquet(old / "examples.parquet").drop("shelf", "new").write_parquet(old / "examples.parquet")
    (old / "card.json").write_text(json.dumps({"sha256": sha256(old / "examples.parquet")}))
    with pytest.raises(DatasetError, match="lacks new, shelf: it tells nothing"):
        read_rows(old, "expert")
    (old / "tags.parquet").unlink()
    with pytest.raises(DatasetError, match="holds no vectors of tags"):
        read_vectors(old)


# ---- rewards --------------------------------------------------------------------------------------------------


def rewarded(rewards: Any, completions: Sequence[Any], step: int = 0) -> tuple[list[float], dict[str, float]]:
    logged: dict[str, float] = {}
    state = SimpleNamespace(global_step=step, max_steps=10)
    found = rewards.reward(
        completions=completions, row=[0] * len(completions), trainer_state=state, log_metric=logged.__setitem__
    )
    return found, logged


def scored(tasks: Sequence[JudgeTask]) -> list[float]:
    return [SCORES[one.subject] for one in tasks]


def tag_parts(scorer: Any = scored, rows: Sequence[Row] | None = None) -> TagParts:
    return TagParts(rows or [expert()], scorer, lambda row, tags: [task("tags", tag) for tag in tags], VECTORS, 1)


def expert_rewards(
    recipe: GrpoRecipe = RECIPE,
    shaping: Any = "crs",
    first: Thresholds = Thresholds(0.3, 0.5, 0.7),
    last: Thresholds = Thresholds(0.9, 0.5, 0.7),
) -> ExpertRewards:
    return ExpertRewards(tag_parts(), recipe, shaping, (first, last))


def test_the_parts_of_an_answer() -> None:
    (found,) = tag_parts().of([0], ['{"tags":["bread","dish soap"]}'])
    assert found == Parts(accuracy=pytest.approx(0.75), alignment=pytest.approx(0.7), diversity=1.0, length=0.75)
    invalid = ['{"tags":["bread"]}', '{"tags":["bread","tea"]}', '{"tags":["bread","dish', ""]
    assert tag_parts().of([0] * 4, invalid) == [None] * 4


def test_a_tag_named_again_counts_once() -> None:
    (found,) = tag_parts().of([0], ['{"tags":["bread","bread"]}'])
    assert found == Parts(accuracy=pytest.approx(0.25), alignment=pytest.approx(0.6), diversity=0.0, length=0.5)


def test_the_tags_of_a_row_are_read_together() -> None:
    asked: list[list[str]] = []

    def scorer(tasks: Sequence[JudgeTask]) -> list[float]:
        asked.append([one.subject for one in tasks])
        return scored(tasks)

    answers = ['{"tags":["bread","dish soap"]}', '{"tags":["white milk","bread"]}', "", '{"tags":["bread","bread"]}']
    tag_parts(scorer, [expert(), expert(), expert()]).of([0, 0, 1, 2], answers)
    assert asked == [["bread", "dish soap", "white milk"], ["bread"]]


def test_gates_close_as_training_goes_on() -> None:
    completions = [answer("bread", "dish soap"), answer("bread", "dish soap", "white milk"), answer("bread", "bread")]
    found, logged = rewarded(expert_rewards(), completions)
    assert found == [pytest.approx(0.75), 0.0, 0.0]
    assert logged["valid"] == pytest.approx(2 / 3)
    assert logged["accuracy"] == pytest.approx((0.75 + 0.25) / 3)
    assert logged["gate_alignment"] == pytest.approx(2 / 3) and logged["gate_diversity"] == pytest.approx(1 / 3)
    assert rewarded(expert_rewards(), completions, step=8)[0] == [0.0, 0.0, 0.0]
    evaluated = expert_rewards()
    evaluated.evaluating = True
    assert rewarded(evaluated, completions)[0] == [0.0, 0.0, 0.0]
    found, _ = rewarded(expert_rewards(replace(RECIPE, weights=Parts(1, 1, 0, 0)), "sum"), completions)
    assert found == [pytest.approx(1.45), 0.0, pytest.approx(0.25 + 0.6)]


def test_gates_are_set_by_the_answers_of_the_training_data(tmp_path: Path) -> None:
    kept, said = tmp_path / "thresholds.json", []
    of_answer = Thresholds(alignment=pytest.approx(0.4), diversity=1.0, length=0.75)  # the one: white milk, bread
    limits = answer_thresholds(tag_parts(), [expert().answer], RECIPE, kept, said.append)
    assert limits == (of_answer, of_answer)
    many = [expert()] * 10
    again = answer_thresholds(tag_parts(rows=many), [one.answer for one in many], RECIPE, kept, said.append)
    assert again == limits and said == []  # they are kept
    kept.unlink()
    answer_thresholds(tag_parts(rows=many), [one.answer for one in many], RECIPE, kept, said.append)
    assert said == ["thresholds of the gates: 10 of 10 answers"]
    kept.unlink()
    with pytest.raises(DatasetError, match="no answer of the training data"):
        answer_thresholds(tag_parts(), ['{"tags":["tea","rye"]}'], RECIPE, kept, say)
    assert not kept.exists()


def test_the_last_step_has_the_last_thresholds() -> None:
    loose = Thresholds(0.3, 0.5, 0.7)
    completions = [answer("bread", "dish soap"), answer("bread", "white milk")]  # of alignment .7 and .4
    rewards = expert_rewards(last=Thresholds(0.7, 0.5, 0.7), first=loose)
    assert [bool(one) for one in rewarded(rewards, completions, step=2)[0]] == [True, True]
    assert rewarded(expert_rewards(last=Thresholds(0.71, 0.5, 0.7), first=loose), completions, step=9)[0] == [0.0, 0.0]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_an_error_that_names_the_row(value: Any) -> None:
    with pytest.raises(TrainingError, match=r"household u1 at 2017-11-17 09:00: a reward is (None|nan|inf)"):
        tag_parts(lambda tasks: [0.5, value]).of([0], ['{"tags":["bread","dish soap"]}'])
    rewards = ExplainerRewards([explainer()], lambda tasks: [value], RECIPE, ["Milk for the week."])
    with pytest.raises(TrainingError, match="a reward is"):
        rewarded(rewards, [text("Fresh bread for the whole week.")])


def test_tags_are_judged_by_what_may_be_trained_on(small_dir: Path) -> None:
    facts = TagFacts(open_dataset(small_dir), open_embedder(Context().embedding_model))
    row = replace(expert(), user_id="h1", as_of=AS_OF)
    found = facts(row, ["infant formula", "white milk"])
    assert [one.subject for one in found] == ["infant formula", "white milk"]
    known = " ".join(fact.text for one in found for fact in one.facts if fact.name == "history")
    assert "Milk" in known and "Formula" not in known  # it was in the last basket but one, which is held out


def test_explanations_are_compared_with_what_was_written_before_them() -> None:
    row = explainer()
    asked: list[list[str]] = []

    def scorer(tasks: Sequence[JudgeTask]) -> list[float]:
        asked.append([one.subject for one in tasks])
        return [0.5] * len(tasks)

    common = "Fresh bread for the week."
    rewards = ExplainerRewards([row], scorer, replace(RECIPE, text_diversity=0.5), [common] * 20)
    assert rewards.recent is not None
    other = "Strong coffee wakes early risers."
    found, logged = rewarded(rewards, [text(common), text(other), text("short"), text(other)])
    assert found == [0.0, 0.5, 0.0, 0.5]  # the second of the same step is no repetition yet
    assert asked == [[common, other]]
    assert logged["valid"] == 0.75 and logged["alignment"] == pytest.approx(1.5 / 4)
    assert logged["gate_diversity"] == 0.5
    assert rewards.recent.texts == [common] * 20 + [other]  # one of a group, else it would be all that is compared with
    rewards.evaluating = True
    for _ in range(2):
        assert rewarded(rewards, [text(other)])[0] == [0.5]
    assert len(rewards.recent) == 21
    assert rewarded(ExplainerRewards([row], scorer, RECIPE, []), [text(common)])[0] == [0.5]  # nothing to be like


def test_the_reward_model_scores_all_candidates_of_a_context(scorer_adapter: Path) -> None:
    score = open_scorer(str(scorer_adapter), torch.device("cpu"), say)
    tasks = [task("tags", f"tag number {number}") for number in range(200)]  # more than one sequence holds
    scores = score(tasks)
    assert len(scores) == 200 and all(value is not None and 0 < value < 1 for value in scores)
    assert score(tasks[-1:])[0] == pytest.approx(scores[-1], abs=1e-4)


# ---- the trainer ----------------------------------------------------------------------------------------------


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(directory / "adapter_model.safetensors")
    return found


@pytest.mark.usefixtures("by_letters")
@pytest.mark.parametrize("agent", ["expert", "explainer"])
def test_a_run_that_was_killed_goes_on_to_the_same_weights_and_curve(
    agent: Agent, data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    card = run(agent, data, adapter, scorer_adapter, whole)
    shutil.copytree(whole / "checkpoint-2", killed / "checkpoint-2")
    shutil.copy(whole / "run.json", killed)
    assert not (killed / "checkpoint-2" / "ref").exists()
    with pytest.raises(OutputError, match="recipe"):
        run(agent, data, adapter, scorer_adapter, killed, recipe=replace(RECIPE, beta=0.5))
    again = run(agent, data, adapter, scorer_adapter, killed)
    assert again["steps"] == card["steps"] == 4
    assert again["validation_reward"] == card["validation_reward"]
    histories = [read_history(out) for out in (whole, killed)]
    for key in (*PANELS, "eval_reward", "eval_kl"):
        assert curve(histories[0], key) == curve(histories[1], key)
    assert curve(histories[0], "eval_reward")[0] == [0, 2, 4]
    last = [weights(out / "checkpoint-4") for out in (whole, killed)]
    started = weights(adapter)
    assert last[0].keys() == started.keys()
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])
    assert not all(torch.allclose(last[0][key], started[key].float(), atol=1e-4) for key in last[0])
    assert curve(histories[0], "kl")[1][-1] > 0


@pytest.mark.usefixtures("by_letters")
def test_the_card_says_what_it_was_made_of(data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = replace(RECIPE, steps=2)
    run("expert", data, adapter, scorer_adapter, out, recipe=recipe, shaping="sum")
    card = json.loads((out / "adapter" / "card.json").read_text())
    assert card["sha256"] == sha256(out / "adapter" / "adapter_model.safetensors")
    assert card["adapter_sha256"] == sha256(adapter / "adapter_model.safetensors")
    assert card["reward_sha256"] == sha256(scorer_adapter / "adapter_model.safetensors")
    assert card["base_sha256"] == json.loads((adapter / "card.json").read_text())["base_sha256"]
    assert (card["agent"], card["shaping"], card["examples"], card["steps"]) == ("expert", "sum", 4, 2)
    assert [limits.keys() for limits in card["thresholds"]] == [{"alignment", "diversity", "length"}] * 2
    assert card["validation_reward"].keys() == {"first", "best"}
    assert sorted(path.name for path in out.glob("adapter/*/")) == []
    base = LlamaForCausalLM.from_pretrained(card["base"], dtype=torch.float32)
    PeftModel.from_pretrained(base, str(out / "adapter"))
    history = read_history(out)
    assert json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"] == history[:-1]
    draw_curves([out, out], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (out / "history.json").unlink()
    assert curve(read_history(out), "reward") == curve(history, "reward")
    with pytest.raises(OutputError, match="holds no run of `recgpt train grpo`"):
        read_history(tmp_path)


def test_merged_weights_answer_alike_and_are_taken_out_to_the_bit(small_model: str, adapter: Path) -> None:
    base = LlamaForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16)
    policy = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    ids = torch.randint(5, 200, (1, 12))
    with torch.no_grad():
        beside, untuned = policy(ids).logits, base.get_input_embeddings()(ids)
        with merged(policy):
            together = policy(ids).logits
        again = policy(ids).logits
    assert untuned.shape[1] == 12
    assert torch.equal(beside, again)
    assert (together - beside).abs().max() < 0.05 * beside.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("order", [[0, 0, 1, 1], [0, 1, 0, 2]])
def test_a_shared_prompt_is_read_once_and_says_the_same(small_model: str, order: list[int]) -> None:
    model = LlamaForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.manual_seed(1)
    for parameter in model.parameters():  # weights as they are drawn say nearly nothing of what they read
        torch.nn.init.normal_(parameter, std=0.3)
    prompts, marks = torch.randint(1, 60, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    marks[1, :4] = 0  # the second prompt is shorter
    ids = torch.cat([prompts[order], torch.randint(1, 60, (4, 5))], dim=1)
    mask = torch.cat([marks[order], torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 0, 0]])], dim=1)
    answered = mask[:, 7:].bool()
    whole = model(input_ids=ids, attention_mask=mask).logits[:, 6:-1].log_softmax(dim=-1)
    expected = whole.gather(2, ids[:, 7:, None])[..., 0]
    expected[answered].sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    read: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    found, entropies = read_answers(model, ids, mask, 5)
    found[answered].sum().backward()
    assert read == [len(set(order)), 4]
    torch.testing.assert_close(found[answered], expected[answered], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(entropies[answered], -(whole.exp() * whole).sum(dim=-1)[answered], atol=1e-4, rtol=1e-4)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 0, 0, 1, 1, 1], [0, 1, 0, 0]])
def test_answers_to_a_shared_prompt_are_those_to_each(small_model: str, order: list[int]) -> None:
    model = LlamaForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    torch.manual_seed(1)
    for parameter in model.parameters():  # weights as they are drawn say nearly the same wherever a word stands
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[0] * 8 + [4, 7, 9, 8], [5, 6, 7, 8] * 3])[order]
    asked = {"input_ids": ids, "attention_mask": (ids > 0).long(), "do_sample": True, "max_new_tokens": 8}
    torch.manual_seed(1)
    expected = model.generate(**asked)
    torch.manual_seed(1)
    with generating(model, lambda ids, scores: scores):
        found = model.generate(**asked)
    assert torch.equal(found, expected)
    assert model.config._attn_implementation == "sdpa"


def test_answers_are_held_to_their_schemas(small_model: str) -> None:
    model = LlamaForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    grammars, parts = Grammars(tokenizer, model.config.vocab_size), tag_parts()
    schemas = [parts.schema(0).model_json_schema(), {"type": "object", "properties": {"n": {"enum": ["one"]}}}]
    schemas[1] |= {"required": ["n"], "additionalProperties": False}
    for _ in range(2):  # a grammar is for one call
        prompts = torch.tensor([[70, 71]] * 2)
        with generating(model, grammars.processor(schemas)):
            made = model.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=True, max_new_tokens=60
            )
        tags, other = tokenizer.batch_decode(made[:, 2:], skip_special_tokens=True)
        assert parts.of([0], [tags]) != [None] and '", "' not in tags
        assert other == '{"n":"one"}'
    assert "generate" not in vars(model)


def test_dead_groups_are_left_out_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    advantages = torch.tensor([0.5, -0.5, 0.0, 0.0, 1e-8, -1e-8, -0.1, 0.1])
    made = {"advantages": advantages, "completion_mask": torch.ones(8, 3, dtype=torch.long)}
    monkeypatch.setattr("trl.GRPOTrainer._generate_and_score_completions", lambda self, inputs: dict(made))
    kind = policy_trainer()
    trainer = kind.__new__(kind)
    trainer.model, trainer.num_generations = SimpleNamespace(training=True), 2
    trainer._metrics = {"train": defaultdict(list)}
    found = trainer._generate_and_score_completions([])["tool_mask"]
    assert found[:, 0].tolist() == [2, 2, 0, 0, 0, 0, 2, 2] and found.shape == (8, 3)
    assert trainer._metrics["train"]["dead_groups"] == [0.5]
    made["advantages"] = torch.zeros(8)
    assert trainer._generate_and_score_completions([])["tool_mask"].sum() == 0
    trainer.model.training = False
    assert "tool_mask" not in trainer._generate_and_score_completions([])


@pytest.mark.usefixtures("by_letters")
def test_where_all_groups_are_dead_nothing_is_learnt(
    data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def parts(self: TagParts, numbers: Sequence[int], texts: Sequence[str]) -> list[Parts | None]:
        pairs = zip(numbers, texts, strict=True)
        return [Parts(0, 0, 0, 0) if text == self._rows[number].answer else None for number, text in pairs]

    monkeypatch.setattr(TagParts, "of", parts)
    run("expert", data, adapter, scorer_adapter, tmp_path / "out", recipe=replace(RECIPE, steps=2))
    history = read_history(tmp_path / "out")
    assert curve(history, "dead_groups")[1] == [1.0, 1.0] and curve(history, "valid")[1] == [0.0, 0.0]
    assert curve(history, "grad_norm")[1] == [0.0, 0.0]
    last, started = weights(tmp_path / "out" / "checkpoint-2"), weights(adapter)
    assert all(torch.equal(last[key], started[key].float()) for key in started)


@pytest.mark.usefixtures("by_letters")
def test_a_full_disk_is_explained_and_the_run_goes_on(
    data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    out, real = tmp_path / "out", Trainer._save_optimizer_and_scheduler

    def full(self: Any, output_dir: str) -> None:
        if output_dir.endswith("-4"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(OutputError, match=r"out could not be written .*: the disk is full\. The last whole"):
            run("expert", data, adapter, scorer_adapter, out)
    assert (out / "checkpoint-2" / "trainer_state.json").is_file() and (out / "checkpoint-4").is_dir()
    said: list[str] = []
    card = run("expert", data, adapter, scorer_adapter, out, report=said.append)
    assert card["steps"] == 4
    assert any("checkpoint-4 is not whole" in line for line in said)
    assert any("training from" in line and "checkpoint-2" in line for line in said)


def test_what_was_made_for_another_base_is_refused(
    data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path, small_model: str
) -> None:
    other = Path(shutil.copytree(scorer_adapter, tmp_path / "reward"))
    write_card(other, small_model, base_sha256="0" * 64)
    with pytest.raises(ModelFilesError, match="was trained on a model with SHA-256 000"):
        run("expert", data, adapter, other, tmp_path / "out")
    with pytest.raises(ModelFilesError, match="was trained on a model with SHA-256 000"):
        open_scorer(str(other), torch.device("cpu"), say)
    damaged = Path(shutil.copytree(adapter, tmp_path / "sft"))
    (damaged / "adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelFilesError, match="its card says"):
        run("expert", data, damaged, scorer_adapter, tmp_path / "out")
    with pytest.raises(SettingError, match="is SEQ_CLS, expected an adapter CAUSAL_LM"):
        run("expert", data, scorer_adapter, scorer_adapter, tmp_path / "out")
    with pytest.raises(SettingError, match="is no adapter, expected an adapter SEQ_CLS"):
        run("expert", data, adapter, Path(small_model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line_names_what_there_is(tmp_path: Path) -> None:
    for option, value in (("--agent", "planner"), ("--shaping", "max"), ("--recipe", "tpu")):
        result = CliRunner().invoke(app, ["train", "grpo", option, value, "--out", str(tmp_path / "out")])
        assert result.exit_code == 1 and f"'{value}'" in result.stderr


# ---- a server that answers ------------------------------------------------------------------------------------


class Server:
    """vLLM's two paths on loopback: it takes adapters, and answers every prompt with two tokens and the end."""

    def __init__(self) -> None:
        self.loaded: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.broken = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply, status = outer.reply(self.path, body)
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[Any, int]:
        if path == "/v1/load_lora_adapter":
            files = sorted(file.name for file in Path(body["lora_path"]).iterdir())
            self.loaded.append(body | {"files": files, "weights": weights(Path(body["lora_path"]))})
            return "Success", 200
        assert path == "/v1/completions"
        self.asked.append(body)
        if self.broken == "refused":
            return {"error": "no such model"}, 404
        choices = []
        for index, _ in enumerate(body["prompt"]):
            made = [65 + (index + len(self.asked)) % 7, 100, len(LETTERS) + 1]
            told = {"token_logprobs": [-0.5] * 3}
            choice = {"index": index, "text": "x", "token_ids": made, "logprobs": told}
            choices.append(choice if self.broken != "bare" else {"index": index, "text": "x"})
        return {"choices": choices[::-1] if self.broken != "few" else choices[1:]}, 200


@pytest.fixture
def vllm() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.mark.usefixtures("by_letters")
def test_a_server_answers_by_the_policy_as_it_is(
    data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path, vllm: Server, small_model: str
) -> None:
    out = tmp_path / "out"
    card = run("expert", data, adapter, scorer_adapter, out, recipe=replace(RECIPE, steps=2), base_url=vllm.base_url)
    assert card["rollouts"] == "vLLM server"
    assert {(one["lora_name"], one["load_inplace"]) for one in vllm.loaded} == {("recgpt-rollout", True)}
    assert vllm.loaded[0]["lora_path"] == str((out / "rollout").resolve()) and "ref" not in vllm.loaded[0]["files"]
    assert len(vllm.loaded) == 3  # once a step, and for the last evaluation
    assert len({one["cache_salt"] for one in vllm.asked}) == 3  # a prompt that an earlier policy read is read anew
    started = weights(adapter)
    assert all(torch.equal(vllm.loaded[0]["weights"][key], started[key].float()) for key in started)
    # A request a group: its prompts are one, and its answers are held to the same schema.
    assert [len(one["prompt"]) for one in vllm.asked] == [2] * 4 + [4] * 4 + [2] * 4
    assert all(prompt == one["prompt"][0] for one in vllm.asked for prompt in one["prompt"])
    schema = expert_rewards().schema(0).model_json_schema()
    assert all(one["structured_outputs"] == {"json": schema} for one in vllm.asked)
    first = vllm.asked[0]
    assert (first["temperature"], first["max_tokens"], first["logprobs"], first["return_token_ids"]) == (
        1.0,
        6,
        0,
        True,
    )
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    assert tokenizer.decode(first["prompt"][0]).endswith("<|im_start|>assistant\n")
    assert curve(read_history(out), "completions/mean_length")[1] == [3.0, 3.0]


def test_a_server_answers_at_temperature_1_alone(
    data: Path, adapter: Path, scorer_adapter: Path, tmp_path: Path
) -> None:
    warm = replace(RECIPE, temperature=0.7)
    with pytest.raises(SettingError, match=r"samples at 0\.7: leave out --base-url"):
        run("expert", data, adapter, scorer_adapter, tmp_path / "out", recipe=warm, base_url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("broken", "said"),
    [("refused", "refused the prompts"), ("bare", "without token ids"), ("few", "gave 1 answers to 2 prompts")],
)
def test_a_server_that_answers_wrongly_is_explained(
    vllm: Server, broken: str, said: str, tmp_path: Path, small_model: str, adapter: Path
) -> None:
    vllm.broken = broken
    rollout = server_rollout(vllm.base_url, "EMPTY", tmp_path / "rollout")
    policy = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(small_model), str(adapter))
    trainer = SimpleNamespace(
        state=SimpleNamespace(global_step=0),
        model=policy,
        processing_class=AutoTokenizer.from_pretrained(small_model),
        temperature=1.0,
        max_completion_length=4,
        asked=[0, 0],
        schema=lambda row: {"type": "object"},
    )
    with pytest.raises(ServerError, match=said):
        rollout([[{"role": "user", "content": "Need"}]] * 2, trainer)
