import itertools
import math

import pytest
import torch
from torch import Tensor

from ocrl.priors.autoregressive import AutoregressivePrior, sort_slots

K, SIZES = 3, (4, 2)
G = len(SIZES)


def make(*, slot_order: str = "encoder", is_trained: bool = True) -> AutoregressivePrior:
    """A prior; a trained one has a head that says something."""
    torch.manual_seed(0)
    size = {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32, "dropout": 0.0}
    prior = AutoregressivePrior(K, code_sizes=SIZES, slot_order=slot_order, **size)
    if is_trained:
        torch.nn.init.normal_(prior.head)
    return prior.eval()


def codes_of(num_scenes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.randint(size, (num_scenes, K), generator=generator) for size in SIZES]
    return torch.stack(groups, dim=-1)


def every_scene() -> Tensor:
    slots = list(itertools.product(*(range(size) for size in SIZES)))
    return torch.tensor(list(itertools.product(slots, repeat=K)))


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    loss = -make(is_trained=False).log_prob(codes_of(5))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((5,), K * (math.log(4) + math.log(2))))


def test_probabilities_of_all_scenes_sum_to_one() -> None:
    scenes = every_scene()
    assert len(scenes) == 8**K
    total = make().double().log_prob(scenes).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def plain_samples(prior: AutoregressivePrior, number: int, temperature: float, seed: int) -> Tensor:
    """Without a cache: the chance of a next code is a sum over all scenes that begin so."""
    generator = torch.Generator().manual_seed(seed)
    scenes = every_scene().flatten(1)
    log_prob = prior.log_prob(every_scene())
    codes = torch.zeros(number, K * G, dtype=torch.long)
    for place in range(K * G):
        fits = (scenes[:, :place] == codes[:, None, :place]).all(-1)
        logits = torch.full((number, max(SIZES)), -torch.inf, dtype=log_prob.dtype)
        for code in range(SIZES[place % G]):
            begins = fits & (scenes[:, place] == code)
            logits[:, code] = log_prob.masked_fill(~begins, -torch.inf).logsumexp(1)
        chances = (logits / temperature).softmax(-1)
        codes[:, place] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return codes.unflatten(1, (K, G))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_with_a_cache_are_those_without(temperature: float) -> None:
    prior = make().double().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    got = prior.sample(40, temperature=temperature, generator=generator)
    assert torch.equal(got, plain_samples(prior, 40, temperature, 4))


def test_samples_follow_the_seed_and_the_temperature() -> None:
    prior = make()

    def drawn(seed: int, temperature: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return prior.sample(300, temperature=temperature, generator=generator)

    assert torch.equal(drawn(1, 1.0), drawn(1, 1.0))
    assert not torch.equal(drawn(1, 1.0), drawn(2, 1.0))
    assert (drawn(1, 5.0) < torch.tensor(SIZES)).all() and (drawn(1, 5.0) >= 0).all()
    likely = [prior.log_prob(drawn(1, heat)).mean() for heat in (0.2, 1.0, 5.0)]
    assert likely[0] > likely[1] > likely[2]
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        drawn(1, 0.0)


def learned(prior: AutoregressivePrior, codes: Tensor, *, seen: Tensor | None = None) -> float:
    """Nats of the scenes `seen` after learning the few that there are by heart."""
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    prior.train()
    for step in range(150):
        torch.manual_seed(step)
        loss = -prior.log_prob(codes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(-prior.eval().log_prob(codes if seen is None else seen).mean())


def test_scenes_learned_by_heart_cost_their_entropy_and_are_what_is_drawn() -> None:
    prior, scenes = make(is_trained=False), codes_of(4, seed=2)
    assert len(scenes.unique(dim=0)) == 4
    assert learned(prior, scenes) == pytest.approx(math.log(4), abs=0.03)
    drawn = prior.sample(200, temperature=1.0, generator=torch.Generator().manual_seed(0))
    is_known = (drawn[:, None] == scenes).flatten(2).all(2).any(1)
    assert is_known.float().mean() > 0.95


def test_sorted_slots_cost_the_entropy_of_the_set_and_others_that_of_the_order_too() -> None:
    scene = torch.tensor([[[0, 1], [2, 0], [3, 1]]])
    orders = torch.cat([scene[:, list(order)] for order in itertools.permutations(range(K))])
    assert learned(make(slot_order="sorted", is_trained=False), orders) < 0.03
    in_order = learned(make(is_trained=False), orders)
    assert in_order == pytest.approx(math.log(6), abs=0.05)


def test_random_order_makes_one_scene_as_likely_in_each() -> None:
    scene = torch.tensor([[[0, 1], [2, 0], [3, 1]]])
    orders = torch.cat([scene[:, list(order)] for order in itertools.permutations(range(K))])
    prior = make(slot_order="random", is_trained=False)
    mean = learned(prior, scene.expand(64, -1, -1), seen=orders)
    assert mean == pytest.approx(math.log(6), abs=0.15)
    assert learned(make(is_trained=False), scene.expand(64, -1, -1), seen=orders) > 5.0


def test_slots_are_sorted_by_their_first_code_and_then_the_next() -> None:
    codes = torch.tensor([[[2, 0], [0, 1], [2, 1], [0, 0]]])
    assert sort_slots(codes).tolist() == [sorted(codes[0].tolist())]
    torch.testing.assert_close(
        make(slot_order="sorted").log_prob(codes_of(6)),
        make(slot_order="sorted").log_prob(codes_of(6)[:, [2, 0, 1]]),
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'random' or 'sorted', got 'set'"):
        make(slot_order="set")
    with pytest.raises(ValueError, match=r"\(B, 3, 2\), got \(5, 2, 2\)"):
        make().log_prob(codes_of(5)[:, :2])
    size = {"dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 8, "dropout": 0.0}
    with pytest.raises(ValueError, match="at least one group of codes, got none"):
        AutoregressivePrior(3, code_sizes=[], slot_order="encoder", **size)
