import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ocrl.decoders.autoregressive import AutoregressiveDecoder, draw_visible
from ocrl.interfaces import Backbone, Tokenizer
from ocrl.objectives.tokenizer import TokenizerReconstruction
from ocrl.objectives.tokens import TokenCrossEntropy
from ocrl.types import Clip

textbook = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).with_name("textbook_autoregressive.py")))
)
GRID, SLOT_DIM, VOCABULARY, FEATURES = (3, 4), 6, 11, 5
NUM_TOKENS = 12


class Shades(Tokenizer):
    """The brightness of each pixel of a small frame, in steps."""

    vocabulary_size, image_size, grid = VOCABULARY, GRID, GRID

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, frames):
        tokens = (frames.mean(1).flatten(1) * (VOCABULARY - 1)).round().long()
        return tokens, self.decode(tokens)

    def decode(self, tokens):
        grey = tokens / (VOCABULARY - 1) + self.offset
        return grey.unflatten(1, GRID)[:, None].expand(-1, 3, -1, -1)


class Pixels(Backbone):
    """A linear map of each pixel."""

    out_dim, image_size, grid = FEATURES, GRID, GRID

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, FEATURES)
        self.dropout = nn.Dropout(0.5)

    def forward(self, frames, *, camera=None):
        return self.dropout(self.map(frames.flatten(2).mT))


def make(target=None, *, is_random=True, **changes):
    arguments = dict(
        orders=[0],
        has_position=True,
        dim=8,
        num_layers=2,
        num_heads=2,
        mlp_dim=16,
        dropout=0.0,
    )
    torch.manual_seed(0)
    decoder = AutoregressiveDecoder(
        SLOT_DIM, target=Shades() if target is None else target, **(arguments | changes)
    )
    if is_random:
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder.eval()


def frames(batch_size=2, num_frames=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch_size, num_frames, 3, *GRID, generator=generator)


SLOTS = torch.randn(2, 3, 4, SLOT_DIM, generator=torch.Generator().manual_seed(1))
TARGETS = {"tokens": Shades, "features": Pixels}


@pytest.mark.parametrize("order", [0, 4, 8])
@pytest.mark.parametrize("has_position", [True, False])
@pytest.mark.parametrize("space", TARGETS)
def test_equals_the_textbook_in_float64(space, has_position, order):
    decoder = make(TARGETS[space](), orders=[order], has_position=has_position).double()
    output = decoder(SLOTS.double(), frames().double())
    assert decoder.space == space
    wanted = output.aux["target"].flatten(0, 1)
    recon, masks = textbook.foretell(decoder, wanted, SLOTS.double().flatten(0, 1))
    tolerance = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.recon.flatten(0, 1), recon, **tolerance)
    torch.testing.assert_close(output.masks.flatten(0, 1).flatten(2), masks, **tolerance)
    torch.testing.assert_close(output.masks.sum(2), torch.ones(2, 3, *GRID).double())


@pytest.mark.parametrize("order", [0, 2, 8])
@pytest.mark.parametrize("has_position", [True, False])
@pytest.mark.parametrize("space", TARGETS)
def test_generation_with_a_cache_equals_that_without_in_float64(space, has_position, order):
    decoder = make(TARGETS[space](), orders=[order], has_position=has_position).double()
    slots = SLOTS.double()
    made = decoder.generate(slots)
    expected = textbook.generate(decoder, slots.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    if space == "tokens":
        assert len(made.unique()) > 2
    # Without frames what was generated is what is read.
    output = decoder(slots)
    given = textbook.foretell(decoder, made.flatten(0, 1), slots.flatten(0, 1))
    torch.testing.assert_close(output.recon.flatten(0, 1), given[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(output.masks.flatten(0, 1).flatten(2), given[1])
    chosen = output.recon.argmax(-1) if space == "tokens" else output.recon
    torch.testing.assert_close(chosen, made)
    assert not output.aux


@pytest.mark.parametrize("order", [0, 3, 8])
def test_a_token_is_foretold_from_those_before_it(order):
    decoder = make(orders=[order])
    changed = frames()
    place = 5
    cell = decoder.order_table[0, place]
    changed.flatten(3)[..., cell] = 1 - changed.flatten(3)[..., cell]
    difference = (decoder(SLOTS, frames()).recon - decoder(SLOTS, changed).recon).abs()
    moved = (difference.amax((0, 1, 3)) > 1e-5)[decoder.order_table[0]]
    assert moved.tolist() == [False] * (place + 1) + [True] * (NUM_TOKENS - place - 1)


def test_training_draws_an_order_each_with_its_start_and_eval_reads_the_first():
    decoder = make(orders=list(range(9)))
    slots, tokens = SLOTS.flatten(0, 1), Shades()(frames().flatten(0, 1))[0]
    each = [textbook.foretell(decoder, tokens, slots, index=index)[0] for index in range(9)]
    drawn = set()
    decoder.train()
    for _ in range(60):
        recon = decoder(SLOTS, frames()).recon.flatten(0, 1)
        near = [index for index in range(9) if torch.allclose(recon, each[index], atol=1e-4)]
        assert len(near) == 1
        drawn.update(near)
    assert drawn == set(range(9))
    decoder.eval()
    torch.testing.assert_close(decoder(SLOTS, frames()).recon.flatten(0, 1), each[0])
    shared = {tuple(row.tolist()) for row in decoder.special}
    assert len(shared) == 9


def test_random_masks_show_as_many_tokens_as_published():
    torch.manual_seed(0)
    is_visible = draw_visible(8000, num_tokens=40, device=torch.device("cpu"))
    # Half of the frames see 40 / 10 - 1 tokens, the others from none to 38.
    share = is_visible.sum(1).bincount(minlength=41) / 8000
    assert share[3] == pytest.approx(0.5 + 0.5 / 39, abs=0.02)
    assert share[39:].sum() == 0
    assert share[[0, 20, 38]].tolist() == pytest.approx([0.5 / 39] * 3, abs=0.007)
    assert is_visible.float().mean(0).std() < 0.02


@pytest.mark.parametrize("space", TARGETS)
def test_random_mask_decoding_reads_visible_tokens_in_both_directions(space, monkeypatch):
    decoder = make(TARGETS[space](), orders=None).train()
    is_visible = torch.zeros(6, NUM_TOKENS, dtype=torch.bool)
    is_visible[:, 7] = True
    monkeypatch.setitem(
        decoder.forward.__globals__, "draw_visible", lambda *sizes, **more: is_visible
    )

    def effect_of(cell):
        changed = frames()
        changed.flatten(3)[..., cell] = 1 - changed.flatten(3)[..., cell]
        difference = decoder(SLOTS, changed).recon - decoder(SLOTS, frames()).recon
        return difference.abs().amax((0, 1, 3))

    assert effect_of(3).max() == 0 and (effect_of(7) > 0).all()
    decoder.eval()
    assert (effect_of(3) > 0).all()


@pytest.mark.parametrize("space", TARGETS)
def test_random_mask_decoding_makes_all_tokens_at_once(space):
    decoder = make(TARGETS[space](), orders=None).double()
    slots = SLOTS.double()
    output = decoder(slots)
    hidden = (decoder.special + decoder.position.table).expand(6, -1, -1)
    context = textbook.context_of(decoder, slots.flatten(0, 1))
    mixed, masks = textbook.mix(decoder.transformer, hidden, context, is_causal=False)
    torch.testing.assert_close(output.recon.flatten(0, 1), decoder.head(mixed))
    torch.testing.assert_close(output.masks.flatten(0, 1).flatten(2), masks)
    expected = output.recon.argmax(-1) if space == "tokens" else output.recon
    torch.testing.assert_close(decoder.generate(slots), expected)


def losses_of(decoder, video):
    clip = Clip(video, torch.zeros(video.shape[:2], dtype=torch.bool))
    output = decoder(SLOTS, video)
    return TokenCrossEntropy()(clip, None, output), TokenizerReconstruction()(clip, None, output)


def test_the_first_loss_is_that_of_knowing_nothing():
    decoder = make(is_random=False)
    foretelling, drawing = losses_of(decoder, frames())
    assert foretelling.item() == pytest.approx(NUM_TOKENS * math.log(VOCABULARY), rel=1e-6)
    grey = decoder.target(frames().flatten(0, 1))[1].unflatten(0, (2, 3))
    expected = (grey - frames()).square().sum((2, 3, 4)).mean()
    assert drawing.item() == pytest.approx(expected.item(), rel=1e-6)
    features = make(Pixels(), is_random=False)(SLOTS, frames())
    assert features.recon.abs().max() == 0


def test_cross_entropy_equals_one_hot_and_so_do_its_gradients():
    decoder = make().double()
    slots = SLOTS.double().requires_grad_()
    tokens = Shades()(frames().flatten(0, 1))[0]
    clip = Clip(frames().double(), torch.zeros(2, 3, dtype=torch.bool))
    ours = TokenCrossEntropy()(clip, None, decoder(slots, frames().double()))
    logits, _ = textbook.foretell(decoder, tokens, slots.flatten(0, 1))
    theirs = textbook.cross_entropy(decoder, logits, tokens)
    # The loss itself is float32.
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)
    weights = [slots, decoder.embed.weight, decoder.special, decoder.position.table]
    weights.append(decoder.transformer.layers[0].attention.to_qkv.weight)
    for one, other in zip(
        torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_slots_and_tokenizer_learn_apart():
    decoder = make().train()
    slots = SLOTS.clone().requires_grad_()
    clip = Clip(frames(), torch.zeros(2, 3, dtype=torch.bool))
    output = decoder(slots, frames())
    TokenCrossEntropy()(clip, None, output).backward()
    assert slots.grad.abs().sum() > 0 and decoder.target.offset.grad is None
    slots.grad = None
    TokenizerReconstruction()(clip, None, output).backward()
    assert slots.grad is None and decoder.target.offset.grad.abs() > 0


def test_a_backbone_is_frozen_and_stays_in_eval():
    decoder = make(Pixels()).train()
    assert decoder.training and not decoder.target.training
    assert not any(p.requires_grad for p in decoder.target.parameters())
    target = decoder(SLOTS, frames()).aux["target"]
    expected = decoder.target(frames().flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(target, expected)
    assert make().train().target.training


def test_a_decoder_of_tokens_depicts_what_it_generates():
    decoder = make()
    pictures = decoder.depict(SLOTS)
    expected = decoder.target.decode(decoder.generate(SLOTS).flatten(0, 1)).unflatten(0, (2, 3))
    assert pictures.shape == (2, 3, 3, *GRID)
    torch.testing.assert_close(pictures, expected)
    assert make(orders=None).depict(SLOTS).shape == pictures.shape
    assert make(Pixels()).depict(SLOTS) is None


def test_dropout_is_of_training_only():
    decoder = make(dropout=0.5)
    once, again = decoder(SLOTS, frames()), decoder(SLOTS, frames())
    assert torch.equal(once.recon, again.recon)
    decoder.train()
    assert not torch.equal(decoder(SLOTS, frames()).recon, decoder(SLOTS, frames()).recon)


@pytest.mark.parametrize("space", TARGETS)
def test_masks_are_wide_and_generation_works_under_autocast(space):
    decoder = make(TARGETS[space]())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = decoder(SLOTS, frames())
        assert decoder.generate(SLOTS).shape[:3] == (2, 3, NUM_TOKENS)
    assert output.masks.dtype == torch.float32 and output.recon.isfinite().all()
    torch.testing.assert_close(output.masks.sum(2), torch.ones(2, 3, *GRID))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="at least one order, or be null"):
        make(orders=[])
    with pytest.raises(ValueError, match="must have positions, got has_position=False"):
        make(orders=None, has_position=False)
    with pytest.raises(ValueError, match="got 3 heads and dim 8"):
        make(num_heads=3)
    with pytest.raises(ValueError, match="from 0 to 8, got 9"):
        make(orders=[9])
