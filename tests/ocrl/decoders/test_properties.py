import pytest
import torch

from ocrl.decoders.properties import PropertyDecoder
from ocrl.properties import PropertySpec

SPEC = {"coordinates": ["position"], "low": [0, 0], "high": [1, 1], "scale": 1}


def make(heads="shared"):
    return PropertyDecoder(
        8,
        spec=PropertySpec({"shape": ["a", "b", "c"], "color": ["d", "e"]}, **SPEC),
        heads=heads,
        hidden_dims=[16],
        image_size=[32, 64],
    )


@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_at_first_it_says_nothing(heads):
    output = make(heads)(torch.randn(2, 3, 4, 8))
    expected = torch.tensor([0.5, 0.5, *[1 / 3] * 3, *[1 / 2] * 2, 0.5])
    torch.testing.assert_close(output.recon, expected.expand(2, 3, 4, 8))
    assert all((value == 0).all() for name, value in output.aux.items() if name != "coordinates")


def test_coordinates_have_a_head_of_their_own_if_separate():
    slots = torch.randn(1, 1, 2, 8)

    def reached(decoder):
        torch.nn.init.ones_(list(decoder.heads[0].parameters())[-2])
        aux = decoder(slots).aux
        return [bool((aux[name] != start).all()) for name, start in
                [("coordinates", 0.5), ("factors/shape", 0), ("presence", 0)]]  # fmt: skip

    assert reached(make("separate")) == [True, False, False]
    assert reached(make("shared")) == [True, True, True]


def test_masks_are_the_attention_or_the_share_of_the_picture():
    slots, decoder = torch.randn(2, 3, 4, 8), make()
    attn = torch.rand(2, 3, 4, 32).softmax(2)
    masks = decoder(slots, attn=attn).masks
    assert masks.shape == (2, 3, 4, 4, 8)
    assert torch.equal(masks.flatten(-2), attn)
    of_three_views = attn.repeat(1, 1, 1, 3)
    torch.testing.assert_close(
        decoder(slots, attn=of_three_views).masks, attn.mean(-1)[..., None, None]
    )
    assert (decoder(slots).masks == 0.25).all()


def test_unknown_heads_are_refused():
    with pytest.raises(ValueError, match="'shared' or 'separate', got 'three'"):
        make("three")
