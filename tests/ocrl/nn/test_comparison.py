import torch

from ocrl.nn.comparison import PairComparison, mean_of_present


def test_a_slot_is_given_the_mean_over_its_pairs():
    torch.manual_seed(0)
    module = PairComparison(5, dim=7)
    slots = torch.randn(2, 4, 5)
    is_present = torch.tensor([[True, True, True, True], [True, False, True, False]])
    found = module(slots, is_present)
    for b in range(2):
        for k in range(4):
            pairs = [
                module.to_pairs((slots[b, k] - slots[b, j]).abs()).relu()
                for j in range(4)
                if is_present[b, j]
            ]
            expected = module.from_pairs(torch.stack(pairs).mean(0))
            torch.testing.assert_close(found[b, k], expected)
    everybody = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(module(slots), module(slots, everybody))
    torch.testing.assert_close(module(slots[:, None])[:, 0], module(slots))


def test_slots_move_with_their_comparisons():
    module = PairComparison(5, dim=7)
    slots, order = torch.randn(2, 4, 5), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(module(slots[:, order]), module(slots)[:, order])


def test_nobody_present_is_a_mean_of_zero():
    values = torch.randn(2, 3, 4)
    assert (mean_of_present(values, torch.zeros(2, 3, dtype=torch.bool)) == 0).all()
