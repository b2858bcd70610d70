"""The towers: shapes, padding, what they learn, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.baskets import Baskets
from tools.errors import ModelFilesError
from tools.towers import AGE_BUCKETS, Towers, TowerShape, age_buckets, build_index, load_towers, save_towers, scores
from training.towers import TowerRecipe, batches

SHAPE = TowerShape(text=8, width=6, interests=3, length=5)
TITLES = [f"t{n}" for n in range(20)]
ALWAYS = np.full(len(TITLES), np.datetime64("2017-01-01"))


@pytest.fixture
def towers() -> Towers:
    torch.manual_seed(0)
    return Towers(SHAPE)


def catalogue() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(TITLES), SHAPE.text)).astype(np.float32)


def test_ages_are_powers_of_two() -> None:
    assert age_buckets(np.array([-1.0, 0.5, 1.0, 3.0, 6.9, 1e6])).tolist() == [0, 0, 1, 2, 2, AGE_BUCKETS - 1]


def test_padding_changes_nothing(towers: Towers) -> None:
    texts = torch.randn(1, 3, SHAPE.text)
    ages = torch.tensor([[1, 0, 2]])
    alone = towers.users(texts, ages, torch.ones(1, 3, dtype=torch.bool))
    padded = towers.users(
        torch.cat([texts, torch.randn(1, 2, SHAPE.text)], dim=1),
        torch.cat([ages, torch.ones(1, 2, dtype=torch.long)], dim=1),
        torch.tensor([[True, True, True, False, False]]),
    )
    assert alone.shape == (1, 3, 6)
    assert torch.allclose(alone, padded, atol=1e-6)


def test_the_score_is_the_best_interests() -> None:
    interests = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    items = torch.tensor([[3.0, 1.0], [0.0, 1.0]])
    assert scores(interests, items).tolist() == [[3.0, 2.0]]


def test_search_finds_what_scoring_all_finds(towers: Towers) -> None:
    index = build_index(towers, TITLES, catalogue(), ALWAYS)
    interests = index.interests(["t3", "t1", "t4"], [30.0, 2.0, 0.5])
    assert interests.shape == (3, 6)
    expected = (interests @ index.items.T).max(axis=0)
    rows, found = index.search(interests, 5)
    assert rows.tolist() == np.argsort(-expected)[:5].tolist()
    assert found.tolist() == pytest.approx(np.sort(expected)[::-1][:5].tolist(), rel=1e-5)
    assert len(index.search(interests, 99)[0]) == len(TITLES)


def test_only_the_last_purchases_are_read(towers: Towers) -> None:
    index = build_index(towers, TITLES, catalogue(), ALWAYS)
    days = [float(day) for day in range(9, 0, -1)]
    assert np.array_equal(index.interests(TITLES[:9], days), index.interests(TITLES[4:9], days[4:]))
    with pytest.raises(ValueError, match="no interests"):
        index.interests([], [])


def test_saved_towers_come_back_for_their_embedder_only(towers: Towers, tmp_path: Path) -> None:
    save_towers(towers, tmp_path, {"embedder": "minilm"})
    again = load_towers(tmp_path, "minilm")
    assert again.shape == SHAPE
    assert torch.allclose(again.codes, towers.codes, atol=1e-3)
    with pytest.raises(ModelFilesError, match=r"embeddings of minilm, this is other.*recgpt train towers"):
        load_towers(tmp_path, "other")
    with pytest.raises(ModelFilesError, match="no towers"):
        load_towers(tmp_path / "absent", "minilm")


def bought_on(*baskets: list[int]) -> Baskets:
    """A basket a week."""
    starts = np.datetime64("2017-01-01T12:00:00", "us") + np.arange(len(baskets)) * np.timedelta64(7, "D")
    return Baskets(starts, [np.array(basket) for basket in baskets])


def test_an_example_is_a_history_and_the_basket_after_it() -> None:
    leaf_of = np.array([0, 0, 1, 2, 3])
    own = bought_on([0], [2], [1, 3, 4], [0, 1, 2], [4])
    recipe = TowerRecipe(cuts=9, least_baskets=2, for_ranker=2)
    (batch,) = batches([own], leaf_of, recipe, length=3, rng=np.random.default_rng(0))
    assert batch.rows.tolist() == [[0, 2, 0]]
    assert batch.there.tolist() == [[True, True, False]]  # the third is padding, not title 0
    assert batch.ages[0, :2].tolist() == age_buckets(np.array([14.0, 7.0])).tolist()
    # Leaf 0 was bought before, leaves 2 and 3 not: what is new counts as much as what is not.
    assert batch.targets.tolist() == [[0.0, 0.5, 0.0, 0.25, 0.25]]


def test_a_households_last_baskets_are_no_targets() -> None:
    own = bought_on(*([n] for n in range(8)))
    recipe = TowerRecipe(cuts=99, least_baskets=3, for_ranker=3)
    (batch,) = batches([own], np.arange(8), recipe, length=20, rng=np.random.default_rng(0))
    assert sorted(batch.targets.argmax(dim=1).tolist()) == [3, 4]
    assert list(batches([bought_on([0], [1])], np.arange(8), recipe, 20, np.random.default_rng(0))) == []
