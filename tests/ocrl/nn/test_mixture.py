"""The E and M steps against a mixture as a textbook writes it, in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ocrl.nn.mixture import (
    EPS,
    LOG_STD_LIMIT,
    MixtureCorrector,
    log_deviation,
    log_joint,
    moments,
)

B, K, N, D, F = 2, 3, 17, 5, 6


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mixture(seed: int = 0) -> dict[str, Tensor]:
    return {
        "mean": random(B, K, D, seed=seed),
        "log_std": 0.4 * random(B, K, D, seed=seed + 1),
        "log_weight": random(B, K, 1, seed=seed + 2).log_softmax(dim=1),
    }


def textbook_log_joint(keys: Tensor, mean: Tensor, log_std: Tensor, log_weight: Tensor) -> Tensor:
    """log(pi_k N(x_n | mu_k, sigma_k)), of (B,K,N,D) densities."""
    density = Normal(mean[:, :, None], log_std.exp()[:, :, None]).log_prob(keys[:, None])
    return density.sum(-1) + log_weight


def ours(keys: Tensor, *, likelihood_power: float = 1.0, **components: Tensor) -> Tensor:
    return log_joint(keys, keys.square(), likelihood_power=likelihood_power, **components)


def test_the_joint_is_that_of_torch_distributions() -> None:
    keys, components = random(B, N, D, seed=7), mixture()
    expected = textbook_log_joint(keys, **components)
    torch.testing.assert_close(ours(keys, **components) - 0.5 * D * math.log(2 * math.pi), expected)
    torch.testing.assert_close(ours(keys, **components).softmax(1), expected.softmax(1))


def test_the_power_is_on_the_density_and_not_on_the_weight() -> None:
    keys, components = random(B, N, D, seed=7), mixture()
    density = textbook_log_joint(keys, **components) - components["log_weight"]
    expected = (0.2 * density + components["log_weight"]).softmax(1)
    torch.testing.assert_close(ours(keys, likelihood_power=0.2, **components).softmax(1), expected)


def test_equal_unit_deviations_and_weights_are_soft_k_means() -> None:
    keys, mean = random(B, N, D, seed=7), random(B, K, D)
    zeros = torch.zeros_like(mean)
    logits = ours(keys, mean=mean, log_std=zeros, log_weight=zeros[..., :1] - math.log(K))
    distance = torch.cdist(mean, keys).square()
    attn = torch.softmax(-0.5 * distance, dim=1)
    torch.testing.assert_close(logits.softmax(1), attn)
    centre, _, _ = moments(logits.softmax(1), keys, keys.square(), eps=0.0)
    expected = torch.stack(
        [(attn[:, k, :, None] * keys).sum(1) / attn[:, k].sum(-1, keepdim=True) for k in range(K)],
        dim=1,
    )
    torch.testing.assert_close(centre, expected)


def test_weights_live_and_sum_to_one() -> None:
    keys, components = random(B, N, D, seed=7), mixture()
    attn = ours(keys, **components).softmax(1)
    _, _, log_weight = moments(attn, keys, keys.square())
    torch.testing.assert_close(log_weight.exp().sum(1), torch.ones(B, 1, dtype=torch.float64))
    torch.testing.assert_close(log_weight.exp().squeeze(-1), attn.mean(-1), atol=1e-5, rtol=1e-4)
    assert log_weight.exp().std(dim=1).min() > 0.01


def test_the_deviation_is_around_the_mean_it_is_given() -> None:
    values, attn = random(B, N, D, seed=3), random(B, K, N).softmax(1)
    around = random(B, K, D, seed=4)
    mean, square, _ = moments(attn, values, values.square(), eps=0.0)
    weights = attn / attn.sum(-1, keepdim=True)
    distance = (values[:, None] - around[:, :, None]).square()
    expected = 0.5 * (weights[..., None] * distance).sum(2).log()
    torch.testing.assert_close(log_deviation(mean, square, around), expected)
    # Of one value there is no variance, and of far ones not without end.
    one = torch.ones(1, 1, 1)
    assert log_deviation(one, one, one).item() == pytest.approx(-LOG_STD_LIMIT)
    assert log_deviation(one, one, 1e6 * one).item() == pytest.approx(LOG_STD_LIMIT)


def test_plain_steps_never_lower_the_likelihood() -> None:
    values, components = 2 * random(B, 200, D, seed=9), mixture()
    likelihoods = []
    for _ in range(12):
        logits = ours(values, **components)
        likelihoods.append(logits.logsumexp(1).sum(-1))
        mean, square, log_weight = moments(logits.softmax(1), values, values.square(), eps=0.0)
        components = {
            "mean": mean,
            "log_std": log_deviation(mean, square, mean),
            "log_weight": log_weight,
        }
    gains = torch.stack(likelihoods).diff(dim=0)
    assert (gains > -1e-9).all() and (gains.sum(0) > 1.0).all()


def test_a_component_that_owns_nothing_becomes_the_gaussian_of_the_frame() -> None:
    values, attn = random(1, N, D, seed=3), torch.zeros(1, 2, N, dtype=torch.float64)
    attn[:, 0] = 1.0
    mean, square, log_weight = moments(attn, values, values.square())
    torch.testing.assert_close(mean[0, 1], values[0].mean(0))
    torch.testing.assert_close(
        log_deviation(mean, square, mean)[0, 1], values[0].std(0, unbiased=False).log()
    )
    assert log_weight[0, 1].exp().item() == pytest.approx(EPS, rel=1e-3)


def test_far_tokens_have_an_owner_in_float32() -> None:
    # Densities of exp(-1000) are 0 in float32; their logarithms are not.
    keys = torch.full((1, 4, 64), 6.0)
    mean = torch.stack([torch.zeros(64), torch.full((64,), 0.1)])[None]
    zeros = torch.zeros_like(mean)
    logits = ours(keys, mean=mean, log_std=zeros, log_weight=zeros[..., :1])
    assert (logits < -900).all()
    assert (logits.softmax(1)[:, 1] > 0.99).all()


# --- the corrector ------------------------------------------------------------------------------


def make(gradient: str = "full", *, mlp_dim: int | None = 8, power: float = 0.5, float64=True):
    torch.manual_seed(0)
    corrector = MixtureCorrector(
        F,
        slot_dim=D,
        mlp_dim=mlp_dim,
        head_dim=7,
        likelihood_power=power,
        gradient=gradient,  # type: ignore[arg-type]
    )
    for parameter in corrector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return corrector.double() if float64 else corrector


def textbook(
    corrector: MixtureCorrector, queries: Tensor, tokens: Tensor, num_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations of arXiv 2311.04640, section 3, with (B,K,N,D) tensors."""
    normal = corrector.norm_inputs(tokens)
    keys, values = corrector.to_k(normal), corrector.to_v(normal)
    mean, log_std = queries, corrector.log_std.expand_as(queries)
    weight = queries.new_full((*queries.shape[:2], 1), 1 / queries.shape[1])
    for _ in range(num_iterations):
        seen = corrector.to_q(corrector.norm_slots(mean))
        std = corrector.to_q(log_std).clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT).exp()
        density = Normal(seen[:, :, None], std[:, :, None]).log_prob(keys[:, None]).sum(-1)
        joint = (corrector.likelihood_power * density).exp() * weight
        attn = joint / joint.sum(1, keepdim=True)
        owned = attn + EPS
        share = owned / owned.sum(-1, keepdim=True)
        read = (share[..., None] * values[:, None]).sum(2)
        mean = corrector.gru(read.flatten(0, 1), mean.flatten(0, 1)).view_as(mean)
        if corrector.mlp is not None:
            mean = mean + corrector.mlp(mean)
        variance = (share[..., None] * (values[:, None] - mean[:, :, None]).square()).sum(2)
        log_std = 0.5 * variance.log()
        weight = owned.sum(-1, keepdim=True) / owned.sum((1, 2), keepdim=True)
    both = torch.cat([mean, log_std], dim=-1)
    return corrector.to_slots(both), attn, weight


@pytest.mark.parametrize("mlp_dim", [8, None])
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_slots_and_gradients_equal_the_textbook_form(
    mlp_dim: int | None, num_iterations: int
) -> None:
    corrector = make(mlp_dim=mlp_dim)
    queries, tokens = (x.requires_grad_() for x in (random(B, K, D), random(B, N, F, seed=5)))
    components, attn = corrector(corrector.start(queries), tokens, num_iterations=num_iterations)
    slots, expected_attn, weight = textbook(corrector, queries, tokens, num_iterations)
    torch.testing.assert_close(corrector.slots(components), slots)
    torch.testing.assert_close(attn, expected_attn)
    torch.testing.assert_close(corrector.unpack(components)[2].exp(), weight)
    sources = [queries, tokens, *corrector.parameters()]
    pull = random(*slots.shape, seed=6)
    torch.testing.assert_close(
        torch.autograd.grad((corrector.slots(components) * pull).sum(), sources),
        torch.autograd.grad((slots * pull).sum(), sources),
    )


@pytest.mark.parametrize("gradient", ["truncated", "bilevel"])
def test_only_the_last_step_has_a_gradient(gradient: str) -> None:
    corrector = make(gradient)
    start, tokens = corrector.start(random(B, K, D)).detach(), random(B, N, F, seed=5)
    start.requires_grad_(), tokens.requires_grad_()
    components, _ = corrector(start, tokens, num_iterations=3)
    torch.testing.assert_close(components, make()(start, tokens, num_iterations=3)[0])
    with torch.no_grad():
        before, _ = corrector(start, tokens, num_iterations=2)
    last, _ = make()(before, tokens, num_iterations=1)
    torch.testing.assert_close(
        torch.autograd.grad(components.sum(), tokens, retain_graph=True),
        torch.autograd.grad(last.sum(), tokens),
    )
    (to_start,) = torch.autograd.grad(components.sum(), start, allow_unused=True)
    assert (to_start is None) == (gradient == "truncated")


def test_components_are_float32_under_autocast_and_close_to_those_without() -> None:
    corrector = make(float64=False)
    queries, tokens = random(B, K, D).float(), random(B, N, F, seed=5).float()
    expected, _ = corrector(corrector.start(queries), tokens, num_iterations=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = corrector.start(queries.bfloat16())
        components, attn = corrector(start, tokens, num_iterations=3)
        slots = corrector.slots(components)
    assert components.dtype == attn.dtype == slots.dtype == torch.float32
    torch.testing.assert_close(components, expected, atol=0.05, rtol=0.05)


def test_the_steps_are_float32_under_autocast() -> None:
    corrector = make(float64=False)
    seen = []

    def watch(module: torch.nn.Module, values: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((torch.is_autocast_enabled("cpu"), output.dtype, values[0].dtype))

    corrector.to_q.register_forward_hook(watch)
    corrector.gru.register_forward_hook(watch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = corrector.start(random(B, K, D).float())
        corrector(start, random(B, N, F, seed=5).float(), num_iterations=1)
    assert seen == [(False, torch.float32, torch.float32)] * 3


def test_float32_is_close_to_float64_at_the_sharpest_deviations() -> None:
    keys = random(1, 64, D, seed=1)
    sharp = {
        "mean": keys[:, :K] + 0.02,
        "log_std": torch.full((1, K, D), -LOG_STD_LIMIT, dtype=torch.float64),
        "log_weight": torch.zeros(1, K, 1, dtype=torch.float64),
    }
    expected = ours(keys, **sharp)
    got = ours(keys.float(), **{name: value.float() for name, value in sharp.items()})
    torch.testing.assert_close(got.double().softmax(1), expected.softmax(1), atol=5e-3, rtol=0)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"likelihood_power must be in \(0,1\], got 0.0"):
        make(power=0.0)
    with pytest.raises(ValueError, match="gradient must be"):
        make("implicit")
    corrector = make()
    with pytest.raises(ValueError, match="at least 1, got 0"):
        corrector(corrector.start(random(B, K, D)), random(B, N, F), num_iterations=0)
