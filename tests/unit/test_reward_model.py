"""The reward model: its losses against values by hand and autograd, and shared prefixes against whole sequences."""

import math
from typing import Any

import pytest
import torch

from training.reward_model import Packed, listwise_loss, pack, packed_mask, pair_accuracy, pointwise_loss, score_packed


def test_the_list_wise_loss_by_hand() -> None:
    scores, grades = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 1, 0])
    expected = math.log(1 + math.exp(-0.4) + math.exp(-0.8)) + math.log(1 + math.exp(-0.4))
    assert float(listwise_loss(scores, grades)) == pytest.approx(expected, abs=1e-6)
    assert float(listwise_loss(scores * 0.1, grades, temperature=0.1)) == pytest.approx(expected, abs=1e-6)


def test_candidates_of_one_grade_do_not_compete() -> None:
    scores = torch.tensor([0.2, 0.8])
    assert float(listwise_loss(scores, torch.tensor([2, 2]))) == pytest.approx(0.0, abs=1e-6)
    assert float(listwise_loss(scores, torch.tensor([0, 0]))) == 0.0
    both = listwise_loss(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([2, 2, 0]))
    assert float(both) == pytest.approx(2 * math.log(1 + math.exp(-0.8)), abs=1e-6)


def test_the_point_wise_loss_by_hand() -> None:
    loss = pointwise_loss(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([2, 1, 0]))
    assert float(loss) == pytest.approx(-math.log(0.9) - math.log(0.5) - math.log(0.9), abs=1e-6)


@pytest.mark.parametrize("loss", [listwise_loss, pointwise_loss])
def test_gradients_are_those_of_finite_differences(loss: Any) -> None:
    grades = torch.tensor([2, 0, 1, 2, 0])
    logits = torch.tensor([0.3, -1.2, 0.5, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: loss(given.sigmoid(), grades), logits)


def test_packing_keeps_what_differs_and_shares_the_rest() -> None:
    packed = pack([[1, 2, 3, 9], [1, 2, 4, 5, 9], [1, 2, 3, 9]], [2, 1, 0])
    assert packed == Packed([1, 2, 3, 9, 4, 5, 9, 3, 9], 2, [3, 6, 8], [2, 1, 0])
    assert pack([[1, 2], [1, 2]], [2, 0]).shared == 1  # the last token is a candidate's own: its score is read there


def test_a_candidate_sees_the_prefix_and_itself() -> None:
    mask, positions = packed_mask(pack([[1, 2, 3], [1, 4, 5]], [2, 0]), torch.float32)
    assert positions.tolist() == [[0, 1, 2, 1, 2]]
    assert (mask[0, 0] == 0).long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_a_shared_prefix_changes_no_score() -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    tokens = [[5, 6, 7, 8, 9, 3], [5, 6, 7, 11, 3], [5, 6, 7, 12, 13, 14, 3]]
    with torch.no_grad():
        together = score_packed(model, pack(tokens, [2, 1, 0]))
        alone = [model(input_ids=torch.tensor([own])).logits.sigmoid().item() for own in tokens]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)


def test_pairs_of_different_grades_are_counted() -> None:
    assert pair_accuracy([0.9, 0.5, 0.1], [2, 1, 0]) == (3.0, 3)
    assert pair_accuracy([0.5, 0.5, 0.9], [2, 1, 0]) == (0.5, 3)
    assert pair_accuracy([0.5, 0.6], [1, 1]) == (0.0, 0)
