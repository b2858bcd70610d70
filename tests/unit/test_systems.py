"""V1 and V2 in the offline evaluation: from kept runs to lists and costs, and nothing stale."""

import shutil
from pathlib import Path

import pytest

from agents.context import Context
from agents.schemas import CallRecord, ProposedTag, Tag
from eval.offline import Evaluation, figures, keep_lists, listed_models, open_evaluation
from eval.retrieval import Listed
from eval.splits import Case
from eval.systems import allocation_figures, list_systems, open_utility, read_system, runs_path, system_figures
from eval.tags import settings_of
from prompts.template import load_prompt
from tests.conftest import tag_run
from tools.dataset import Dataset
from tools.embedding import PACKAGED_MODEL, open_embedder
from tools.ranker import RANKER
from tools.ranker import WEIGHTS as RANKER_WEIGHTS
from tools.shelf import tag_text
from tools.towers import TOWERS

CALL = CallRecord(
    agent="expert",
    subject="p",
    prompt="expert/v1",
    model="m",
    attempt=1,
    valid=True,
    prompt_tokens=100,
    completion_tokens=10,
    seconds=0.5,
)


@pytest.fixture
def run(journey: Dataset, tmp_path: Path) -> Evaluation:
    return open_evaluation(journey, tmp_path, 3)


def final_tag(leaf: str) -> Tag:
    return Tag(tag=leaf, persona="p", category=["Grocery", leaf], score=1, reason="r", source="model", proposed=leaf)


def keep_runs(
    run: Evaluation, system: str, cases: list[Case], tags: dict[str, list[str]], final: int | None = 0
) -> None:
    """Runs whose pool has the tags and what was bought next; of the latter the first `final` are picked."""
    path = runs_path(run, system, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    proposed = [ProposedTag(tag=tag, persona=persona) for persona, own in tags.items() for tag in own]
    lines = []
    for case in cases:
        wanted = [ProposedTag(tag=tag_text(leaf), persona="target") for leaf in sorted(case.target)]
        picked = [final_tag(leaf) for leaf in sorted(case.target)[:final]]
        lines.append(tag_run(case, pool=[*proposed, *wanted], tags=picked, calls=[CALL, CALL]).model_dump_json())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_tags_become_lists_beyond_thirty(run: Evaluation) -> None:
    embedder = open_embedder(PACKAGED_MODEL)
    cases = run.cases("test", 3)
    bought = [tag_text(leaf) for leaf in sorted(cases[0].bought)[:30]]
    keep_runs(run, "v2", cases, {"habit": bought})
    list_systems(run, embedder, None, lambda message: None)
    assert listed_models(run, "test", "leaf") == ["v2_cognitive"]
    values = figures(run)
    # Thirty leaves that were bought come first; where only new ones count, what follows them is listed all the same.
    assert values["models.v2_cognitive.leaf.new.hr@30"].mean > 0.9


def test_repeated_tags_and_costs_are_counted(run: Evaluation) -> None:
    embedder = open_embedder(PACKAGED_MODEL)
    cases = run.cases("test", 3)
    keep_runs(run, "v1", cases, {"a": ["white milk", "bananas"], "b": ["white milk", "White Milk"]})
    for entry in read_system(run, "v1", "test"):
        assert [proposed.persona for proposed in entry.pool[:4]] == ["a", "a", "b", "b"]
    values = system_figures(run, embedder)
    assert values["cost.v1.prompt_tokens"].mean == 200
    assert values["cost.v1.llm_calls"].mean == 2
    assert values["cost.v1.seconds"].mean == 1.0  # a call and its repair
    assert 0 < values["routes.v1.duplicate_rate"].mean < 1


def test_final_tags_are_compared_household_by_household(run: Evaluation) -> None:
    cases = run.cases("test", 3)
    keep_runs(run, "v1", cases, {})
    keep_runs(run, "v2", cases[:2], {}, final=None)
    values = system_figures(run, open_embedder(PACKAGED_MODEL))
    assert values["tags.v1.leaf.all.hit_rate"].mean == 0 and values["tags.v1.leaf.all.hit_rate"].n == 3
    assert values["tags.v2.leaf.new.hit_rate"].mean == 1
    assert values["tags.v2-v1.leaf.all.hit_rate"].mean == 1 and values["tags.v2-v1.leaf.all.hit_rate"].n == 2


def test_what_tells_where_a_hit_comes_from_is_listed_beside(run: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = Evaluation.cases
    monkeypatch.setattr(Evaluation, "cases", lambda run, split, users: cases(run, split, 3))  # not everyone
    embedder = open_embedder(PACKAGED_MODEL)
    keep_runs(run, "v1", run.cases("test", 3), {})
    keep_runs(run, "v2", run.cases("test", 3), {}, final=None)
    list_systems(run, embedder, open_utility(run.dataset, embedder, TOWERS, RANKER), lambda message: None)
    values = figures(run)
    for name in ("v1", "v2_cognitive", "utility", "v1_combined", "v2_combined"):
        assert values[f"models.{name}.leaf.all.hr@30"].n == 3
    assert values["gain.v1_combined.leaf.all.hr@30"].mean >= 0  # the target's own tags


def test_lists_go_with_the_runs_that_made_them(run: Evaluation) -> None:
    embedder = open_embedder(PACKAGED_MODEL)
    cases = run.cases("test", 3)
    keep_runs(run, "v2", [cases[0], cases[2]], {})
    assert [entry.user_id for entry in read_system(run, "v2", "test")] == [cases[0].user_id]  # up to the first gap
    keep_runs(run, "v2", cases, {})
    list_systems(run, embedder, None, lambda message: None)
    assert "models.v2_cognitive.leaf.all.hr@30" in figures(run)
    keep_lists(run, "v2_combined", "test", "leaf", Listed({}, {}), [], "of towers that are gone")
    runs_path(run, "v2", "test").unlink()
    list_systems(run, embedder, None, lambda message: None)
    assert listed_models(run, "test", "leaf") == []


def test_pages_of_whole_items_lose_little(run: Evaluation) -> None:
    embedder = open_embedder(PACKAGED_MODEL)
    keep_runs(run, "v2", run.cases("test", 3), {})
    values = allocation_figures(run, open_utility(run.dataset, embedder, TOWERS, RANKER), Context(items=5))
    assert values["allocation.page.exposures"].mean == 5
    assert values["allocation.page.loss"].n == 3
    assert 0 <= values["allocation.page.loss"].mean < 0.5
    # Without tags a page has own purchases and what the towers find near them.
    assert 0 <= values["page.ner"].mean <= values["page.new"].mean <= 1 and values["page.precision"].n == 3


def test_runs_go_on_only_with_the_settings_that_tags_depend_on(tmp_path: Path) -> None:
    usual = settings_of(Context())
    same = tmp_path / "elsewhere"
    shutil.copytree(RANKER, same)
    assert settings_of(Context(exploration=3, items=2, ranker=same, explainer_temperature=0.1)) == usual
    (same / RANKER_WEIGHTS).write_bytes(b"other weights")
    assert settings_of(Context(ranker=same)) != usual
    assert settings_of(Context(tags_per_expert=9)) != usual and settings_of(Context(vocabulary="any")) != usual
    assert {"vocabulary", "model", "planner_prompt", "shelf", "seed"} <= usual.keys() and "api_key" not in usual


def test_runs_go_on_only_with_the_weights_and_prompts_that_began_them(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = settings_of(Context())
    with monkeypatch.context() as patch:
        patch.setattr("eval.tags.weights_name", lambda model: f"{model}@tuned anew")
        assert settings_of(Context())["weights"] != usual["weights"]
    with monkeypatch.context() as patch:
        edited = load_prompt("expert", "v1").edited("Write tags.")
        patch.setattr("eval.tags.load_prompt", lambda agent, version: edited)
        assert settings_of(Context())["prompts"] != usual["prompts"]
