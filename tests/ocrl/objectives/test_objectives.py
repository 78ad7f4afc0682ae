import math

import pytest
import torch

from ocrl.interfaces import Backbone
from ocrl.objectives.coherence import Coherence
from ocrl.objectives.contrast import SlotContrast
from ocrl.objectives.features import FeatureReconstruction
from ocrl.objectives.mixture import Mixture
from ocrl.objectives.preheat import Preheat
from ocrl.objectives.quantization import Quantization
from ocrl.objectives.reconstruction import Reconstruction
from ocrl.objectives.tokenizer import TokenizerReconstruction
from ocrl.objectives.tokens import TokenCrossEntropy
from ocrl.types import Clip, DecoderOutput, SlotOutput


def make_clip(num_frames=2, size=(4, 6), first=None):
    is_first = torch.zeros(2, num_frames, dtype=torch.bool)
    is_first[:, 0] = True
    for position in first or []:
        is_first[position] = True
    return Clip(torch.zeros(2, num_frames, 3, *size), is_first)


def encoded(slots, **aux):
    return SlotOutput(slots, torch.ones(*slots.shape[:3], 1) / slots.shape[2], aux=aux)


def decoded(recon, **aux):
    return DecoderOutput(recon, torch.ones(*recon.shape[:2], 1, 1, 1), aux=aux)


SLOTS = torch.randn(2, 2, 3, 5)


def test_reconstruction_is_the_mean_squared_error():
    recon = torch.full((2, 2, 3, 4, 6), 0.5)
    assert Reconstruction(None)(make_clip(), encoded(SLOTS), decoded(recon)) == 0.25


def test_reconstruction_counts_its_region_only():
    recon = torch.ones(2, 2, 3, 4, 6)
    recon[..., :2, 3:] = 3.0
    loss = Reconstruction([0.0, 0.5, 0.5, 1.0])
    assert loss(make_clip(), encoded(SLOTS), decoded(recon)) == 9.0


def test_reconstruction_says_what_it_needs():
    with pytest.raises(ValueError, match="needs a decoder of pixels"):
        Reconstruction(None)(make_clip(), encoded(SLOTS), decoded(torch.zeros(2, 2, 8, 5)))
    with pytest.raises(ValueError, match=r"in \[0,1\], got \[0.5, 0, 0.5, 1\]"):
        Reconstruction([0.5, 0, 0.5, 1])


class MeanColour(Backbone):
    """Halves of the frame as two tokens."""

    out_dim, image_size, grid = 3, (4, 6), (1, 2)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.dropout = torch.nn.Dropout(0.9)

    def forward(self, frames, *, camera=None):
        tokens = frames.unflatten(-1, (2, 3)).mean(dim=(2, 4)).transpose(1, 2)
        return self.dropout(tokens * self.scale)


def test_features_of_a_frozen_backbone():
    objective = FeatureReconstruction(MeanColour(), is_normalised=False).train()
    clip = make_clip()
    clip.video[..., 3:] = 1.0
    recon = torch.zeros(2, 2, 2, 3)
    loss = objective(clip, encoded(SLOTS), decoded(recon.requires_grad_()))
    assert loss == 0.5
    assert not objective.target.training
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_features_normalised_per_token():
    objective = FeatureReconstruction(MeanColour(), is_normalised=True)
    clip = make_clip()
    clip.video[:, :, 0] = 1.0
    target = objective.features(clip, decoded(SLOTS))
    torch.testing.assert_close(target.mean(-1), torch.zeros(2, 2, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        target.var(-1, unbiased=False), torch.ones(2, 2, 2), atol=1e-3, rtol=0
    )


def test_features_say_what_is_wrong():
    objective = FeatureReconstruction(MeanColour(), is_normalised=True)
    with pytest.raises(ValueError, match=r"= \(2, 2, 2, 3\), got \(2, 2, 4, 3\)"):
        objective(make_clip(), encoded(SLOTS), decoded(torch.zeros(2, 2, 4, 3)))


@pytest.mark.parametrize("term", ["divergence", "commitment"])
def test_quantization_is_a_mean_over_slots(term):
    cost = torch.arange(12.0).view(2, 2, 3)
    output = encoded(SLOTS, **{f"code_{term}": cost.bfloat16()})
    loss = Quantization(term)(make_clip(), output, decoded(SLOTS))
    assert loss.dtype == torch.float32 and loss.item() == 5.5


def test_quantization_says_what_it_needs():
    output = encoded(SLOTS, code_divergence=torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match=r"'code_commitment' .* ema .* \['code_divergence'\]"):
        Quantization("commitment")(make_clip(), output, decoded(SLOTS))
    with pytest.raises(ValueError, match="'divergence' or 'commitment', got 'kl'"):
        Quantization("kl")


def test_preheat_counts_fresh_starts_and_leaves_the_slots_alone():
    slots = torch.zeros(2, 2, 3, 5, requires_grad=True)
    queries = torch.ones(2, 2, 3, 5)
    queries[:, 1] = 100.0
    queries[1, 1] = 3.0
    queries.requires_grad_()
    clip = make_clip(first=[(1, 1)])
    loss = Preheat()(clip, encoded(slots, preheat_queries=queries), decoded(SLOTS))
    assert loss.item() == pytest.approx((1 + 1 + 9) / 3)
    loss.backward()
    assert slots.grad is None
    assert queries.grad[0, 1].abs().sum() == 0
    assert queries.grad[1, 1].abs().sum() > 0


def test_normalised_preheating_does_not_care_how_large_slots_are():
    slots = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    queries = torch.nn.functional.layer_norm(slots, (5,))
    for scale in (1.0, 50.0):
        seen = encoded(scale * slots + 2, preheat_queries=queries)
        loss = Preheat(is_normalised=True)(make_clip(), seen, decoded(SLOTS))
        assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert Preheat()(make_clip(), seen, decoded(SLOTS)).item() > 100


def test_preheat_needs_a_preheater():
    with pytest.raises(ValueError, match="smooth_sa"):
        Preheat()(make_clip(), encoded(SLOTS), decoded(SLOTS))


@pytest.mark.parametrize(("negatives", "num_candidates"), [("clip", 3), ("batch", 6)])
def test_contrast_of_slots_that_are_all_alike_is_chance(negatives, num_candidates):
    slots = torch.ones(2, 2, 3, 5)
    loss = SlotContrast(0.1, negatives=negatives)(make_clip(), encoded(slots), decoded(SLOTS))
    assert float(loss) == pytest.approx(math.log(num_candidates), rel=1e-5)


@pytest.mark.parametrize("negatives", ["clip", "batch"])
def test_contrast_rewards_slots_that_stay(negatives):
    objective = SlotContrast(0.1, negatives=negatives)
    staying = torch.eye(6).view(2, 1, 3, 6).expand(2, 2, 3, 6)
    swapped = staying.clone()
    swapped[:, 1] = staying[:, 1, [1, 2, 0]]
    stay = objective(make_clip(), encoded(staying), decoded(SLOTS))
    swap = objective(make_clip(), encoded(swapped), decoded(SLOTS))
    assert stay < 1e-3
    assert swap == pytest.approx(10.0, abs=0.1)


def test_contrast_ignores_pairs_across_episodes():
    slots = torch.eye(3).expand(2, 3, 3, 3).clone()
    slots[0, 1:] = slots[0, 1:, [1, 2, 0]]
    clip = make_clip(num_frames=3, first=[(0, 1)])
    assert SlotContrast(0.1, negatives="clip")(clip, encoded(slots), decoded(SLOTS)) < 1e-3
    single = make_clip(num_frames=1)
    assert SlotContrast(0.1, negatives="clip")(single, encoded(slots[:, :1]), decoded(SLOTS)) == 0


def palette_output(video, textures, masks):
    drawn = torch.einsum("btkhw,btkcpq->btchpwq", masks, textures)
    return DecoderOutput(drawn.flatten(5, 6).flatten(3, 4), masks, textures)


def test_mixture_is_the_mean_error_of_single_patches():
    clip = make_clip(size=(4, 6))
    clip.video.uniform_()
    textures = torch.rand(2, 2, 3, 3, 2, 2)
    masks = torch.rand(2, 2, 3, 2, 3).softmax(2)
    output = palette_output(clip.video, textures, masks)
    expected = 0.0
    for row in range(2):
        for column in range(3):
            patch = clip.video[..., row * 2 : row * 2 + 2, column * 2 : column * 2 + 2]
            errors = (patch[:, :, None] - textures).square().mean(dim=(3, 4, 5))
            expected = expected + (masks[..., row, column] * errors).sum(2).mean() / 6
    loss = Mixture(None)(clip, encoded(SLOTS), output)
    torch.testing.assert_close(loss, expected)
    assert loss > Reconstruction(None)(clip, encoded(SLOTS), output)


def test_mixture_equals_reconstruction_for_hard_masks_and_counts_its_region_only():
    clip = make_clip(size=(4, 6))
    textures = torch.rand(2, 2, 3, 3, 2, 2)
    owner = torch.randint(3, (2, 2, 2, 3))
    masks = torch.nn.functional.one_hot(owner, 3).permute(0, 1, 4, 2, 3).float()
    output = palette_output(clip.video, textures, masks)
    for region in (None, [0.0, 0.0, 0.5, 1.0]):
        pair = [kind(region)(clip, encoded(SLOTS), output) for kind in (Mixture, Reconstruction)]
        torch.testing.assert_close(*pair)


def test_mixture_needs_a_palette():
    output = DecoderOutput(torch.zeros(2, 2, 3, 4, 6), torch.ones(2, 2, 1, 2, 3))
    with pytest.raises(ValueError, match=r"\(3, 2, 2\) per slot .* got none"):
        Mixture(None)(make_clip(), encoded(SLOTS), output)


def test_coherence_is_the_variance_of_colour_within_slots():
    clip = make_clip(size=(4, 6))
    clip.video.uniform_()
    attn = torch.rand(2, 2, 3, 6).softmax(2)
    colours = clip.video.unflatten(-1, (3, 2)).unflatten(-3, (2, 2)).mean(dim=(4, 6)).flatten(3)
    expected = 0.0
    for slot in range(3):
        weight = attn[:, :, slot, None]
        mean = (weight * colours).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
        expected = expected + (weight * (colours - mean).square()).sum(-1).mean() / 6
    loss = Coherence("colours", position_weight=0.0, region=None)(
        clip, SlotOutput(SLOTS, attn), decoded(SLOTS)
    )
    torch.testing.assert_close(loss, expected)


def test_coherence_is_zero_for_slots_of_one_colour():
    clip = make_clip(size=(4, 6))
    clip.video[..., :2, :] = 0.7
    owner = torch.tensor([0, 0, 0, 1, 2, 1]).expand(2, 2, 6)
    attn = torch.nn.functional.one_hot(owner, 3).transpose(2, 3).float()
    loss = Coherence("colours", position_weight=0.0, region=None)(
        clip, SlotOutput(SLOTS, attn), decoded(SLOTS)
    )
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_coherence_needs_square_patches():
    with pytest.raises(ValueError, match="got 5 tokens"):
        attn = torch.full((2, 2, 3, 5), 1 / 3)
        Coherence("colours", position_weight=0.0, region=None)(
            make_clip(), SlotOutput(SLOTS, attn), decoded(SLOTS)
        )


def test_coherence_of_places_leaves_the_ground_alone():
    clip = make_clip(size=(2, 10))
    # Tokens of 2 x 2 pixels: five places 0, 1/4, 1/2, 3/4, 1 in a row.
    owner = torch.tensor([1, 0, 0, 0, 1]).expand(2, 2, 5)
    attn = torch.nn.functional.one_hot(owner, 2).transpose(2, 3).float()
    objective = Coherence("colours", position_weight=8.0, region=None)
    assert objective(clip, SlotOutput(SLOTS, attn), decoded(SLOTS)) == 0
    objective.set_progress(0.5)
    loss = objective(clip, SlotOutput(SLOTS, attn), decoded(SLOTS))
    # Slot 1 holds both ends: squared distance 1/4 from its mean for two of five tokens.
    torch.testing.assert_close(loss, torch.tensor(2.0 * 0.25 * 2 / 5))
    near = torch.nn.functional.one_hot(torch.tensor([1, 1, 0, 0, 0]).expand(2, 2, 5), 2)
    attn = near.transpose(2, 3).float()
    loss = objective(clip, SlotOutput(SLOTS, attn), decoded(SLOTS))
    torch.testing.assert_close(loss, torch.tensor(2.0 * 0.125**2 * 2 / 5))


def test_coherence_of_patches_sees_what_colours_do_not():
    clip = make_clip(size=(4, 6))
    clip.video[..., ::2] = 1.0
    clip.video[..., :2, :2] = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    attn = torch.full((2, 2, 1, 6), 1.0)
    output = SlotOutput(SLOTS[:, :, :1], attn)
    colours = Coherence("colours", position_weight=0.0, region=None)(clip, output, decoded(SLOTS))
    patches = Coherence("patches", position_weight=0.0, region=None)(clip, output, decoded(SLOTS))
    torch.testing.assert_close(colours, torch.tensor(0.0), atol=1e-6, rtol=0)
    # One of six patches is the others' negative: variance 1/6 * 5/6 of each pixel.
    torch.testing.assert_close(patches, torch.tensor(5 / 36))
    with pytest.raises(ValueError, match="'colours' or 'patches', got 'shapes'"):
        Coherence("shapes", position_weight=0.0, region=None)


def test_coherence_counts_its_region_only():
    clip = make_clip(size=(4, 6))
    clip.video.uniform_()
    clip.video[..., 2:, :] = 0.3
    attn = torch.rand(2, 2, 3, 6).softmax(2)
    output = SlotOutput(SLOTS, attn)
    for weight in (0.0, 1.0):
        lower = Coherence("patches", position_weight=weight, region=[0.5, 0.0, 1.0, 1.0])
        lower.set_progress(1.0)
        rest = lower(clip, output, decoded(SLOTS))
        clip.video[..., :2, :].uniform_()
        torch.testing.assert_close(lower(clip, output, decoded(SLOTS)), rest)
        assert (rest < 1e-6) == (weight == 0.0)


def test_coherence_of_views_is_that_of_all_of_them_together():
    views = torch.rand(2, 2, 3, 3, 4, 6)  # three cameras
    attn = torch.rand(2, 2, 3, 18).softmax(2)
    clip = make_clip(size=(12, 6))
    clip.video.copy_(views.transpose(2, 3).flatten(3, 4))
    objective = Coherence("patches", position_weight=0.0, region=None)
    alone = objective(clip, SlotOutput(SLOTS, attn), decoded(SLOTS))
    together = objective(Clip(views, clip.is_first), SlotOutput(SLOTS, attn), decoded(SLOTS))
    torch.testing.assert_close(together, alone)
    for options, message in (
        ({"position_weight": 1.0, "region": None}, "position_weight=0 and no region .*t=1.0"),
        ({"position_weight": 0.0, "region": [0.0, 0.0, 0.5, 1.0]}, "views of several cameras"),
    ):
        with pytest.raises(ValueError, match=message):
            Coherence("patches", **options)(
                Clip(views, clip.is_first), SlotOutput(SLOTS, attn), decoded(SLOTS)
            )


def test_coherence_of_things_and_their_shadows():
    clip = make_clip(size=(2, 4))
    # One colour, in the light and half as bright: (.3, .0, .6) differs from its mean alike.
    lit = torch.tensor([0.6, 0.3, 0.9])
    clip.video.copy_(torch.stack([lit, lit - 0.3], -1).repeat_interleave(2, -1)[:, None])
    attn = torch.full((2, 2, 1, 2), 1.0)
    for brightness in (0.0, 0.5, 1.0):
        loss = Coherence("colours", position_weight=0.0, region=None, brightness=brightness)(
            clip, SlotOutput(SLOTS[:, :, :1], attn), decoded(SLOTS)
        )
        torch.testing.assert_close(loss, torch.tensor((0.15 * brightness) ** 2))
    with pytest.raises(ValueError, match="brightness must not be negative, got -1"):
        Coherence("colours", position_weight=0.0, region=None, brightness=-1.0)


def test_coherence_of_rare_looks_counts_them_more():
    clip = make_clip(size=(2, 8))
    colours = torch.tensor([0.0, 0.0, 0.4, 0.8])
    clip.video.copy_(colours.repeat_interleave(2).expand_as(clip.video))
    attn = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1]).expand(2, 2, 4), 2)
    output = SlotOutput(SLOTS, attn.transpose(2, 3).float())
    losses = {
        share: Coherence("colours", position_weight=0.0, region=None, rare_share=share)(
            clip, output, decoded(SLOTS)
        ).item()
        for share in (0.0, 0.5, 1.0)
    }
    # Squares about the mean colour 0.3: .09, .09, .01, .25, whose mean is .11.
    weights = torch.tensor([0.01, 0.25]) / 0.11
    mean = (weights * torch.tensor([0.4, 0.8])).sum() / weights.sum()
    rare = (weights * (torch.tensor([0.4, 0.8]) - mean).square()).sum() / 4
    assert losses[0.0] == pytest.approx(0.02, rel=1e-5)
    assert losses[1.0] == pytest.approx(rare.item(), rel=1e-4)
    half = 0.5 + 0.5 * weights
    mean = (half * torch.tensor([0.4, 0.8])).sum() / half.sum()
    expected = (half * (torch.tensor([0.4, 0.8]) - mean).square()).sum() / 4
    assert losses[0.5] == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(ValueError, match=r"rare_share in \[0,1\], got 2"):
        Coherence("colours", position_weight=0.0, region=None, rare_share=2.0)


def test_features_that_the_decoder_has_read():
    objective = FeatureReconstruction(None, is_normalised=False).train()
    target, recon = torch.randn(2, 2, 4, 3), torch.randn(2, 2, 4, 3)
    loss = objective(make_clip(), encoded(SLOTS), decoded(recon, target=target))
    torch.testing.assert_close(loss, (recon - target).square().mean())
    for aux in ({}, {"target": torch.zeros(2, 2, 4, dtype=torch.long)}):
        with pytest.raises(ValueError, match="or a decoder that reads features"):
            objective(make_clip(), encoded(SLOTS), decoded(recon, **aux))


def test_cross_entropy_is_summed_over_the_tokens_of_a_frame():
    logits = torch.randn(2, 2, 4, 7)
    tokens = torch.randint(7, (2, 2, 4))
    loss = TokenCrossEntropy()(make_clip(), encoded(SLOTS), decoded(logits, target=tokens))
    likely = logits.log_softmax(-1).gather(-1, tokens[..., None])
    torch.testing.assert_close(loss, -likely.sum() / 4)
    half = TokenCrossEntropy()(
        make_clip(), encoded(SLOTS), decoded(logits.bfloat16(), target=tokens)
    )
    assert half.dtype == torch.float32


def test_the_tokenizer_error_is_summed_over_the_pixels_of_a_frame():
    tokenized = torch.full((2, 2, 3, 4, 6), 0.5)
    recon = torch.zeros(2, 2, 4, 7)
    loss = TokenizerReconstruction()(
        make_clip(), encoded(SLOTS), decoded(recon, tokenized=tokenized)
    )
    assert loss == 0.25 * 3 * 4 * 6


def test_token_objectives_say_which_decoder_they_need():
    features = decoded(torch.zeros(2, 2, 4, 7), target=torch.zeros(2, 2, 4, 7))
    for output in (decoded(torch.zeros(2, 2, 3, 4, 6)), features):
        with pytest.raises(ValueError, match="choose decoder=slate or steve"):
            TokenCrossEntropy()(make_clip(), encoded(SLOTS), output)
        with pytest.raises(ValueError, match="choose decoder=slate or steve"):
            TokenizerReconstruction()(make_clip(), encoded(SLOTS), output)
