"""Signs of a collapse, in numbers and in words."""

import math

import pytest
import torch

from ocrl.health import code_use, describe_health, slot_health


class TestSlotHealth:
    def test_one_slot_takes_all(self):
        masks = torch.zeros(1, 3, 4, 2, 2)
        masks[:, :, 1] = 1.0
        slots = torch.ones(1, 3, 4, 5)
        health = {name: value.item() for name, value in slot_health(slots, masks).items()}
        assert health == pytest.approx(
            {
                "slots_in_use": 1.0,
                "largest_share": 1.0,
                "dead_slots": 3.0,
                "slot_similarity": 1.0,
                "temporal_drift": 0.0,
            }
        )

    def test_each_slot_its_quarter_and_directions(self):
        masks = torch.eye(4).view(1, 1, 4, 2, 2).expand(1, 2, -1, -1, -1)
        slots = torch.eye(4)[None].repeat(2, 1, 1)[None]
        slots[0, 1] *= -3.0
        health = slot_health(slots, masks)
        assert health["slots_in_use"].item() == 4.0
        assert health["largest_share"].item() == 0.25
        assert health["slot_similarity"].item() == 0.0
        assert health["temporal_drift"].item() == pytest.approx(2.0)
        assert slot_health(slots[:, :1], masks[:, :1])["temporal_drift"].item() == 0.0


def test_codes_used_evenly_have_a_perplexity_of_their_number():
    codes = torch.tensor([[[0, 5], [3, 5]], [[1, 5], [2, 5]]])
    perplexity, used = code_use(codes)
    torch.testing.assert_close(perplexity, torch.tensor([4.0, 1.0], dtype=torch.float64))
    assert used.tolist() == [4.0, 1.0]
    perplexity, used = code_use(torch.tensor([[7], [7], [7], [1]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert perplexity.item() == pytest.approx(math.exp(entropy)) and used.item() == 2.0


def test_health_in_words():
    fine = {"largest_share": 0.5, "slots_in_use": 6.0, "slot_similarity": 0.2}
    assert describe_health(fine, num_slots=8) == []
    assert "99%" in describe_health({**fine, "largest_share": 0.99}, num_slots=8)[0]
    assert "1.5 of 8" in describe_health({**fine, "slots_in_use": 1.5}, num_slots=8)[0]
    assert "0.97" in describe_health({**fine, "slot_similarity": 0.97}, num_slots=8)[0]
