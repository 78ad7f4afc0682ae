import math

import pytest
import torch

from ocrl.nn.latent import CategoricalLatent, FactorCodeLatent, divergence, mix_uniform, pick

D, G, C = 12, 3, 4
SETTINGS = {
    "num_groups": G,
    "num_classes": C,
    "hidden_dim": 16,
    "unimix": 0.01,
    "free_nats": 1.0,
    "prior_weight": 2.0,
    "posterior_weight": 0.5,
    "reconstruction_weight": 3.0,
}


def categorical(**changes):
    torch.manual_seed(0)
    return CategoricalLatent(D, **SETTINGS | changes)


def coded(code_sizes=(4, 2, 3), slot_dim=D):
    torch.manual_seed(0)
    latent = FactorCodeLatent(slot_dim, code_sizes=list(code_sizes), unimix=0.01, weight=0.5)
    torch.nn.init.normal_(latent.head)
    return latent


def test_a_share_of_the_uniform_distribution():
    mixed = mix_uniform(torch.tensor([0.0, math.log(3)]), 0.1)
    torch.testing.assert_close(mixed.exp(), torch.tensor([0.275, 0.725]))
    padded = mix_uniform(
        torch.tensor([0.0, math.log(3), 9.0]), 0.1, is_class=torch.tensor([True, True, False])
    )
    torch.testing.assert_close(padded.exp(), torch.tensor([0.275, 0.725, 0.0]))
    assert padded.isfinite().all()
    assert mix_uniform(torch.zeros(2, dtype=torch.bfloat16), 0.1).dtype == torch.float32


def test_divergence_golden():
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    torch.testing.assert_close(divergence(p, q), torch.tensor(expected))
    both = torch.cat([p, q]), torch.cat([q, q])
    torch.testing.assert_close(divergence(*both), torch.tensor(expected))


def test_the_likeliest_or_a_draw_with_the_gradient_of_probabilities():
    logits = torch.tensor([0.1, 0.6, 0.3]).log().requires_grad_()
    chosen = pick(logits, is_drawn=False)
    torch.testing.assert_close(chosen, torch.tensor([0.0, 1.0, 0.0]))
    weights = torch.tensor([1.0, 2.0, 3.0])
    (grad,) = torch.autograd.grad((chosen * weights).sum(), logits)
    torch.testing.assert_close(grad, torch.tensor([0.1, 0.6, 0.3]) * weights)
    torch.manual_seed(0)
    drawn = pick(logits.expand(20000, 3), is_drawn=True)
    torch.testing.assert_close(drawn.mean(0), torch.tensor([0.1, 0.6, 0.3]), atol=0.01, rtol=0)
    ones = drawn.sum(-1)
    torch.testing.assert_close(ones, torch.ones_like(ones))


def test_categoricals_cost_what_is_not_free_and_each_side_learns_its_part():
    latent = categorical(free_nats=0.0).eval()
    target = torch.randn(2, 5, D)
    said = torch.randn(2, 5, G, C, requires_grad=True)
    logits = mix_uniform(said, 0.01)
    posterior = mix_uniform(latent.encoder(target).unflatten(-1, (G, C)), 0.01)
    costs = latent.costs(logits, target)
    torch.testing.assert_close(costs["divergence"], 2.5 * divergence(posterior, logits))
    recon = latent.decode(latent.encode(target))
    error = (recon - target).square().mean(-1)
    torch.testing.assert_close(costs["reconstruction"], 3 * error)
    # Half of the weight on the posterior's side, none without it.
    for weight in (0.5, 0.0):
        latent = categorical(free_nats=0.0, posterior_weight=weight).eval()
        cost = latent.costs(logits, target)["divergence"].sum()
        grads = torch.autograd.grad(
            cost, [said, latent.encoder.layers[-1].weight], retain_graph=True
        )
        assert grads[0].abs().sum() > 0
        assert (grads[1].abs().sum() > 0) == (weight > 0)
    free = categorical(free_nats=100.0).eval().costs(logits, target)["divergence"]
    torch.testing.assert_close(free, torch.full((2, 5), 250.0))
    assert not torch.autograd.grad(free.sum(), said)[0].any()


def test_categoricals_are_drawn_in_training_only():
    slots, latent = torch.randn(64, 5, D), categorical()
    assert not torch.equal(latent.encode(slots), latent.encode(slots))
    latent.eval()
    assert torch.equal(latent.encode(slots), latent.encode(slots))
    assert latent.predict(torch.randn(2, 5, G * C))[0].shape == (2, 5, G * C)


def test_codes_are_read_back_from_slots_and_make_them_again():
    latent = coded()
    codes = torch.stack([torch.randint(size, (50, 2)) for size in (4, 2, 3)], dim=-1)
    parts = torch.stack([latent.codebook[g][codes[..., g]] for g in range(G)])
    slots = latent.base + parts.sum(0)
    assert torch.equal(latent.codes_of(slots), codes)
    latents = latent.encode(slots)
    assert torch.equal(latents.unflatten(-1, (G, 4)).argmax(-1), codes)
    torch.testing.assert_close(latent.decode(latents), slots)
    # Embeddings start from the codes: an untrained token is the slot.
    torch.testing.assert_close(latent.embed(latents), slots)


def test_codes_are_read_under_autocast_as_without_it():
    sizes = [256] * 8
    latent = coded(sizes, slot_dim=64)
    # Sixteen levels along each of two directions, as of a finite scalar quantiser.
    levels = torch.cartesian_prod(*[torch.linspace(-1, 1, 16)] * 2)
    latent.set_codes(torch.stack([levels @ torch.randn(2, 64) for _ in sizes]), torch.randn(64))
    codes = torch.randint(256, (50, 7, 8))
    parts = torch.stack([latent.codebook[g][codes[..., g]] for g in range(8)])
    slots = latent.base + parts.sum(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(latent.codes_of(slots), codes)


def test_codes_cost_their_cross_entropy():
    latent = coded()
    torch.nn.init.zeros_(latent.head)
    slots = latent.decode(latent.encode(torch.randn(2, 5, D)))
    _, logits = latent.predict(torch.randn(2, 5, D))
    expected = 0.5 * (math.log(4) + math.log(2) + math.log(3))
    torch.testing.assert_close(latent.costs(logits, slots)["codes"], torch.full((2, 5), expected))


def test_no_group_says_a_code_that_it_has_not():
    latent = coded().train()
    latents, logits = latent.predict(10 * torch.randn(500, D))
    used = latents.unflatten(-1, (G, 4)).argmax(-1).amax(0)
    assert used.tolist() == [3, 1, 2] and logits.isfinite().all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="unimix between 0 and 1, got 0"):
        categorical(unimix=0.0)
    with pytest.raises(ValueError, match="at least one code each, got"):
        coded(code_sizes=())
