"""Training an adaptor: what it is asked, that it learns, goes on after a kill, and what it refuses."""

import json
import lzma
import shutil
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from prompts.template import spell_out
from tests.conftest import AS_OF
from tests.unit.test_hybrid import PROMPT, ROWS
from tools.adaptor import Adaptor, AdaptorShape, load_adaptor
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.errors import DatasetError, OutputError
from tools.hybrid import IGNORED, PLACEHOLDER, Example, HybridReader, Reading
from tools.models import weights_name
from training.adaptor import AdaptorRecipe, batches_of_tokens, collate, train_adaptor
from training.alignment import Alignment, read_alignments
from training.perception import (
    PERCEPTION_FILE,
    Pair,
    answered_examples,
    held_out,
    held_out_questions,
    known_facts,
    load_perception,
    perception_pairs,
    read_titles,
    split_of,
)

RECIPE = AdaptorRecipe(
    hidden=32,
    pairs=120,
    batch_tokens=512,
    learning_rate=1e-2,
    bias_rate=1e-2,
    warmup_steps=1,
    start_steps=20,
    evaluate_every=3,
    validation_pairs=20,
    validation_alignments=1,
)


def test_a_prompt_is_tokenized_as_its_text_would_be_but_for_the_entities(tiny_model: str) -> None:
    reading = Reading(tiny_model, 2)
    hybrid = reading.example(PROMPT.render({"rows": ROWS}, hybrid=True), "yes")
    assert hybrid.entities == ("white milk", "tea", "rye bread")
    assert (hybrid.ids == reading.placeholder).sum() == 2 * 3
    text = reading.example(PROMPT.render({"rows": [{"id": "h", "texts": [], "note": "n"}]}), "yes")
    assert text.entities == () and not (text.ids == reading.placeholder).any()
    assert text.ids[text.answer :].tolist() == hybrid.ids[hybrid.answer :].tolist()
    assert reading.title(PLACEHOLDER) == [reading.placeholder]


def test_what_is_held_out_stays_text_in_a_hybrid_prompt(tiny_model: str) -> None:
    reading = Reading(tiny_model, 1)
    messages = PROMPT.render({"rows": ROWS}, hybrid=True)
    mixed = reading.example(spell_out(messages, {"white milk", "rye bread"}), "yes")
    assert mixed.entities == ("tea",)
    text = reading.example(spell_out(PROMPT.render({"rows": ROWS}), {"tea"}), "yes")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, additional_special_tokens=[PLACEHOLDER])
    assert tokenizer.decode(mixed.ids).replace(PLACEHOLDER, "tea") == tokenizer.decode(text.ids)


def test_own_embeddings_in_the_place_of_words_change_nothing(tiny_model: str) -> None:
    """Where the adaptor gives the embeddings of the words themselves, the loss is that of the words."""
    llm = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    word = 700
    adaptor = Adaptor(AdaptorShape(2, 4, 32))
    with torch.no_grad():
        adaptor.outer.weight.zero_()
        adaptor.outer.bias.copy_(llm.get_input_embeddings().weight[word])
    reader = HybridReader(adaptor, llm, placeholder=49999)
    words = torch.tensor([5, word, 6, word, 9, 10, 2])
    places = words.masked_fill(words == word, 49999)
    labels = words.clone()
    labels[:4] = IGNORED
    expected = llm(input_ids=words[None], labels=labels[None]).loss
    found = reader(places[None], torch.ones_like(places)[None], labels[None], torch.zeros(2, 2))["loss"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert {name for name, _ in reader.named_parameters()} == {f"adaptor.{name}" for name in adaptor.state_dict()}


def test_padding_changes_no_loss(tiny_model: str) -> None:
    llm = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(0)
    reader = HybridReader(Adaptor(AdaptorShape(2, 4, 32)), llm, placeholder=49999)
    short = Example(torch.tensor([5, 49999, 7, 8, 2]), 3, ("a",))
    long = Example(torch.tensor([5, 6, 49999, 7, 9, 11, 12, 2]), 7, ("b",))

    def vectors(texts: object) -> torch.Tensor:
        return torch.tensor([{"a": [1.0, 2.0], "b": [0.5, -1.0]}[text] for text in texts])  # type: ignore[attr-defined]

    alone = [reader(**collate([example], vectors, 49999))["loss"].item() for example in (short, long)]
    both = reader(**collate([short, long], vectors, 49999))["loss"].item()
    assert both == pytest.approx((2 * alone[0] + 1 * alone[1]) / 3, rel=1e-4)


def test_a_common_beginning_is_read_once_with_the_same_loss_and_gradient(tiny_model: str) -> None:
    llm = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(requires_grad=False)
    torch.manual_seed(0)
    reader = HybridReader(Adaptor(AdaptorShape(2, 4, 32)), llm, placeholder=49999)
    rows = [[5, 6, 7, 49999, 8, 9, 2], [5, 6, 7, 49999, 4, 3, 2], [5, 6, 49999, 7, 4, 3, 2]]
    vectors = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.2, 0.1]])

    def loss(some: list[int]) -> torch.Tensor:
        ids = torch.tensor([rows[row] for row in some])
        labels = ids.clone()
        labels[:, :5] = IGNORED
        found: torch.Tensor = reader(ids, torch.ones_like(ids), labels, vectors[some])["loss"]
        return found

    together, alone = loss([0, 1, 2]), torch.stack([loss([row]) for row in range(3)]).mean()
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
    parameters = list(reader.parameters())
    for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (together, alone)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    expected = llm(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, 2:3].log_softmax(dim=-1)
    text = reader.log_probabilities(Example(torch.tensor([5, 6, 7, 8]), 3, ()), torch.empty(0))
    torch.testing.assert_close(text, expected, rtol=1e-4, atol=1e-5)


def test_micro_batches_hold_everything_once_within_their_bound() -> None:
    begin = torch.arange(1000, 1010)
    alike = [Example(torch.cat([begin, torch.arange(1 + n % 37)]), 0, ()) for n in range(300)]
    others = [Example(torch.arange(5 + n), 0, ()) for n in range(9)]
    batches = batches_of_tokens([alike, others, []], 128, seed=3)
    assert sorted(id(example) for batch in batches for example in batch) == sorted(map(id, [*alike, *others]))
    for batch in batches:
        shared = {id(example) in set(map(id, alike)) for example in batch}
        assert len(shared) == 1  # one group each
        read = max(len(example.ids) for example in batch) - (11 if True in shared else 5)
        assert len(batch) * read <= 128
    assert any(len(batch) > 8 for batch in batches)
    again = batches_of_tokens([alike, others, []], 128, seed=3)
    assert [[id(one) for one in batch] for batch in again] == [[id(one) for one in batch] for batch in batches]


def test_vectors_longer_than_the_models_own_are_punished_in_training_alone(tiny_model: str) -> None:
    llm = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    usual = llm.get_input_embeddings().weight.norm(dim=1).mean().item()
    adaptor = Adaptor(AdaptorShape(2, 4, 32))
    ids, labels = torch.tensor([[5, 49999, 7, 2]]), torch.tensor([[IGNORED, IGNORED, 7, 2]])

    def loss(norm: float, training: bool) -> float:
        with torch.no_grad():
            adaptor.outer.weight.zero_()
            adaptor.outer.bias.fill_(norm / 32**0.5)
        reader = HybridReader(adaptor, llm, 49999, norm_penalty=0.5).train(training)
        return float(reader(ids, torch.ones_like(ids), labels, torch.zeros(1, 2))["loss"])

    assert loss(3 * usual, training=True) - loss(3 * usual, training=False) == pytest.approx(0.5 * 2**2, rel=1e-3)
    assert loss(0.9 * usual, training=True) == loss(0.9 * usual, training=False)


def _louder(model: str, directory: Path) -> str:
    """The model with larger weights: what its prompts hold then tells in its answers, and can be learnt."""
    llm = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    for parameter in llm.parameters():
        if parameter.ndim == 2:
            parameter.data *= 8
    llm.save_pretrained(shutil.copytree(model, directory))
    return str(directory)


def test_it_trains_goes_on_after_a_kill_and_gives_the_same_weights_twice(
    small_dir: Path, tiny_model: str, tmp_path: Path
) -> None:
    tiny_model = _louder(tiny_model, tmp_path / "llm")
    lines = [
        Alignment(
            model=weights_name(tiny_model),
            user_id=f"u{n}",
            as_of=AS_OF,
            agent="arbiter",
            version="v1",
            values={
                "moment": "now", "profile": "unknown", "signals": [], "pool": [], "tags": 3,
                "personas": [{"number": 1, "name": "p", "intent": "i", "evidence": ["White Bread, 20 oz", "tea"]}],
            },
            answer='{"picks":[]}',
        )
        for n in range(6)
    ]  # fmt: skip
    alignment = tmp_path / "alignment.jsonl.xz"
    alignment.write_bytes(lzma.compress("".join(line.model_dump_json() + "\n" for line in lines).encode()))

    said: list[str] = []

    def run(out: Path, recipe: AdaptorRecipe = RECIPE) -> dict[str, object]:
        return train_adaptor(
            small_dir, PACKAGED_MODEL, tiny_model, alignment, None, PERCEPTION_FILE, out, recipe, said.append
        )

    whole = run(tmp_path / "whole")
    losses = whole["validation_loss"]
    assert isinstance(losses, dict) and losses["best"] < losses["first"]
    assert whole["alignments"] == 5
    twice = run(tmp_path / "twice")
    weights = [(tmp_path / name / "adaptor" / "adaptor.safetensors").read_bytes() for name in ("whole", "twice")]
    assert weights[0] == weights[1]
    assert twice["data_sha256"] == whole["data_sha256"]
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-12", killed / "checkpoint-12")
    shutil.copy(tmp_path / "whole" / "run.json", killed)
    with pytest.raises(OutputError, match="recipe"):
        run(killed, replace(RECIPE, seed=8))
    (killed / "checkpoint-13").mkdir()
    (killed / "checkpoint-13" / "optimizer.pt").write_bytes(b"cut off by a kill")
    said.clear()
    run(killed)
    assert f"{killed / 'checkpoint-13'} is not whole: it is removed" in said
    assert f"training from {killed / 'checkpoint-12'}" in said
    assert (killed / "adaptor" / "adaptor.safetensors").read_bytes() == weights[0]
    assert sum(path.stat().st_size for path in (killed / "checkpoint-12").iterdir()) < 1e6  # the LLM is not in it
    embedder = open_embedder(PACKAGED_MODEL)
    assert load_adaptor(killed / "adaptor", weights_name(tiny_model), embedder.name).adaptor.shape == AdaptorShape(
        384, 32, 32
    )
    assert json.loads((killed / "adaptor" / "card.json").read_text())["steps"] == whole["steps"]


def test_held_out_entities_are_in_no_trained_pair(journey: Dataset) -> None:
    facts, perception = known_facts(journey), load_perception()
    pairs = perception_pairs(facts, perception, "train", 5000, seed=1)
    assert {pair.task for pair in pairs} == set(perception.tasks) - {"translation"}
    shares = Counter(pair.task for pair in pairs)
    assert shares["card"] > 4 * shares["department"] > 0
    trained = {pair.entity for pair in pairs}
    assert any("query" in facts[text] for text in trained)
    assert not trained & held_out(facts, "validation", "test", "test_leaf")
    trained_leaves = {facts[title]["leaf"] for title in trained}
    questions = held_out_questions(journey, perception, 20)
    assert {"department", "size_of_new_leaf", "category_of_query"} <= {question.task for question in questions}
    for question in questions:
        assert question.entity not in trained
        if question.task.endswith("_of_new_leaf"):
            assert facts[question.entity]["leaf"] not in trained_leaves
        assert ("query" in facts[question.entity]) == question.task.endswith("_of_query")
        assert not question.choices or question.answer in question.choices
        assert question.entity in str(question.text[1].content)
    for task, examples in answered_examples(facts, perception).items():
        assert len({pair.answer for pair in examples}) == len(examples) <= perception.examples
        assert bool(examples) == (task != "translation")  # no corpus is given
        assert {pair.entity for pair in examples} <= facts.keys() - held_out(facts, "validation", "test", "test_leaf")
    (shown,) = {question.hybrid[0].content for question in questions if question.task == "department"}
    assert shown.count("department") == perception.examples and isinstance(shown, str)  # examples are text
    assert {split_of(title, facts[title]["leaf"]) for title in trained} == {"train"}


def test_a_query_is_about_what_was_bought_after_it(small: Dataset) -> None:
    events = small.events_before(datetime.max)
    searched = [("h1", datetime(2017, 10, 8, 17), "snack"), ("h2", datetime(2017, 11, 1, 12), "nothing bought")]
    more = pl.DataFrame(searched, schema=["user_id", "timestamp", "query"], orient="row")
    table = pl.concat([events, more.with_columns(action=pl.lit("search"))], how="diagonal_relaxed")
    facts = known_facts(small.with_events(table.cast(dict(events.schema)).sort("user_id", "timestamp")))
    assert facts["snack"]["query"] == "snack" and facts["snack"]["leaf"] in (
        "White Milk",
        "White Bread",
        "Baby Diapers",
    )
    assert "nothing bought" not in facts
    assert facts["frozen pizza"]["department"] == "Grocery" and "title" not in facts["frozen pizza"]


def test_facts_are_those_of_the_catalogue_and_of_what_is_bought(journey: Dataset) -> None:
    facts = known_facts(journey)
    milk = facts["Store Brand White Milk, 1 gal"]
    assert milk["brand"] == "Store Brand" and milk["size"] == "1 gal" and milk["season"] == "all year"
    assert milk["department"] == "Grocery" and milk["leaf"] in milk["card"]
    by_leaf = {known["leaf"]: known for known in facts.values()}
    assert by_leaf["Inflatable Toys"]["season"] == "summer"
    assert by_leaf["Charcoal"]["bought_with"] != "Charcoal"


def test_a_corpus_of_titles_is_strict_pairs(tmp_path: Path) -> None:
    path = tmp_path / "titles.jsonl"
    path.write_text('{"zh": "\u725b\u5976 1\u5347", "en": "Milk, 1 l"}\n', encoding="utf-8")
    facts = read_titles(path)
    assert facts == {"\u725b\u5976 1\u5347": {"en": "Milk, 1 l"}}
    pairs = perception_pairs(facts, load_perception(), split_of(*["\u725b\u5976 1\u5347"] * 2), 3, seed=1)
    assert {(pair.task, pair.answer) for pair in pairs} == {("translation", "Milk, 1 l")}
    for line in ('{"zh": "a"}', '{"zh": "a", "en": ""}', '{"zh": "a", "en": "b", "note": "c"}', "{"):
        path.write_text(line + "\n", encoding="utf-8")
        with pytest.raises(DatasetError, match="line 1: expected"):
            read_titles(path)
    long = "\u725b\u2028" + "a" * 2000
    path.write_text(
        json.dumps({"zh": long.replace("\u2028", ""), "en": long}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (title,) = facts = read_titles(path)
    pair = Pair("translation", 0, title, facts[title]["en"])
    assert facts[title]["en"] == long
    assert title in str(load_perception().ask(pair, [], hybrid=True)[1].content)  # uncut
    path.write_text(json.dumps({"zh": "a" * 10_001, "en": "b"}) + "\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="would change or cut this title"):
        read_titles(path)
    with pytest.raises(DatasetError, match="recgpt train alignment"):
        read_alignments(path, "m")
    cut = tmp_path / "cut.jsonl.xz"
    cut.write_bytes(lzma.compress(b"{}\n" * 99)[:-20])
    with pytest.raises(DatasetError, match="recgpt train alignment"):
        read_alignments(cut, "m")
