import pytest
import torch

from ocrl.nn.causal_transformer import CausalTransformer

B, N, E = 3, 7, 12


def make() -> CausalTransformer:
    torch.manual_seed(0)
    model = CausalTransformer(E, num_layers=3, num_heads=2, mlp_dim=20, dropout=0.1)
    return model.double().eval()


def sequence(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, N, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_token_by_token_is_the_whole_sequence() -> None:
    model = make()
    cache = model.start(B, num_tokens=N)
    assert [tuple(kept.shape) for kept in cache] == [(2, B, 2, N, 6)] * 3
    steps = [model.step(sequence()[:, i : i + 1], cache, position=i) for i in range(N)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(sequence()))


def test_no_token_sees_a_later_one() -> None:
    changed = sequence()
    changed[:, 4, 0] += 1
    moved = (make()(sequence()) - make()(changed)).abs().amax((0, 2)) > 1e-9
    assert moved.tolist() == [False] * 4 + [True] * 3


def test_dropout_is_for_training_only() -> None:
    model = make()
    assert torch.equal(model(sequence()), model(sequence()))
    assert not torch.equal(model.train()(sequence()), model(sequence()))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="got 5 heads and dim 12"):
        CausalTransformer(E, num_layers=1, num_heads=5, mlp_dim=4, dropout=0.0)
