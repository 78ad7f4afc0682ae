import pytest
import torch

from ocrl.nn.predictor import IdentityPredictor, RandomPairPredictor, TransformerPredictor


def random_pair(window: int = 3, dropout: float = 0.0) -> RandomPairPredictor:
    torch.manual_seed(0)
    return RandomPairPredictor(
        6, slot_dim=8, window=window, num_heads=2, mlp_dim=16, dropout=dropout
    )


def history(length: int, batch_size: int = 4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Frames whose numbers are their distance to the current one."""
    slots = [torch.full((batch_size, 2, 8), float(i + 1)) for i in range(length)]
    tokens = [torch.full((batch_size, 5, 6), float(i)) for i in range(length)]
    return slots, tokens


def test_identity() -> None:
    slots, tokens = history(2)
    assert IdentityPredictor()(slots, tokens, torch.ones(4)) is slots[0]


def test_transformer_predictor_applies_its_blocks_to_the_last_frame() -> None:
    predictor = TransformerPredictor(8, num_layers=2, num_heads=2, mlp_dim=16, norm_first=False)
    slots, tokens = history(1)
    expected = predictor.blocks[1](predictor.blocks[0](slots[0]))
    torch.testing.assert_close(predictor(slots, tokens, torch.ones(4)), expected)
    assert len(predictor.blocks) == 2 and predictor.window == 1


def test_random_pair_in_eval_reads_the_last_slots_and_the_current_tokens() -> None:
    predictor = random_pair(dropout=0.5).eval()
    slots, tokens = history(3)
    age = torch.tensor([1, 2, 3, 3])
    queries = slots[0] + predictor.age_embedding[1]
    memory = predictor.to_memory(tokens[0]) + predictor.age_embedding[0]
    expected = predictor.block(queries, memory)
    torch.testing.assert_close(predictor(slots, tokens, age), expected)
    torch.testing.assert_close(predictor(slots[:1], tokens[:1], age), expected)


def test_random_pair_in_training_draws_frames_of_the_episode_only() -> None:
    predictor = random_pair()
    torch.manual_seed(0)
    age = torch.tensor([1, 2, 3] * 400)
    index = predictor._draw(age)
    for choices in (1, 2, 3):
        drawn = index[age == choices]
        counts = drawn.bincount(minlength=3).tolist()
        assert counts[choices:] == [0] * (3 - choices)
        assert all(abs(count - 400 / choices) < 80 for count in counts[:choices])


def test_random_pair_tells_times_as_distances() -> None:
    predictor = random_pair()
    slots, tokens = history(3, batch_size=1)
    age = torch.tensor([3])
    allowed = {
        (i, j): predictor.block(
            slots[i] + predictor.age_embedding[i + 1],
            predictor.to_memory(tokens[j]) + predictor.age_embedding[j],
        )
        for i in range(3)
        for j in range(3)
    }
    seen = set()
    for _ in range(100):
        predicted = predictor(slots, tokens, age)
        matches = [key for key, value in allowed.items() if torch.allclose(value, predicted)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(allowed)


def test_random_pair_reads_nothing_older_than_the_episode() -> None:
    predictor = random_pair()
    slots, tokens = history(3)
    frames = ([slots[0], *[value * torch.nan for value in slots[1:]]], [tokens[0]] * 3)
    for _ in range(20):
        assert torch.isfinite(predictor(*frames, torch.tensor([1, 1, 0, 1]))).all()


def test_random_pair_lets_no_gradient_into_the_past() -> None:
    slots, tokens = history(2)
    for value in (*slots, *tokens):
        value.requires_grad_()
    predictor = random_pair()
    predictor(slots, tokens, torch.tensor([2, 2, 1, 1])).sum().backward()
    assert all(value.grad is None for value in (*slots, *tokens))
    assert predictor.to_memory.weight.grad is not None


def test_window_must_be_positive() -> None:
    with pytest.raises(ValueError, match="got 0"):
        random_pair(window=0)
