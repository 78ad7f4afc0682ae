import pytest
import torch

from ocrl.decoders.autoregressive import AutoregressiveDecoder
from ocrl.decoders.block_coupled import BlockCoupledDecoder
from ocrl.decoders.broadcast import SpatialBroadcastDecoder
from ocrl.tokenizers.dvae import DVAE

K, D, M, E = 3, 8, 4, 6
SHAPE = {"slot_dim": D, "num_blocks": M, "dim": E, "num_heads": 2, "mlp_dim": 12}


def slots_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 1, K, D, generator=torch.Generator().manual_seed(seed))


def of_tokens() -> BlockCoupledDecoder:
    torch.manual_seed(0)
    heat = {"temperatures": [1.0, 0.1], "anneal_until": 0.5}
    tokenizer = DVAE(16, image_size=[8, 8], channels=8, is_normalised=True, **heat)
    size = {"dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 8, "dropout": 0.0}
    inner = AutoregressiveDecoder(E, target=tokenizer, orders=[0], has_position=True, **size)
    torch.nn.init.normal_(inner.head.weight)
    return BlockCoupledDecoder(inner, **SHAPE).eval()


def of_pixels() -> BlockCoupledDecoder:
    torch.manual_seed(0)
    size = {"channels": [8], "strides": [2], "kernel_size": 3, "patch_size": 1}
    return BlockCoupledDecoder(SpatialBroadcastDecoder(E, image_size=[8, 8], **size), **SHAPE)


def plain_coupling(decoder: BlockCoupledDecoder, slots: torch.Tensor) -> torch.Tensor:
    """Slot after slot, block after block."""
    size, coupled = D // M, []
    for k in range(K):
        blocks = [
            slots[:, 0, k, m * size : (m + 1) * size] @ decoder.to_coupled.weight[m]
            + decoder.place[m]
            for m in range(M)
        ]
        coupled.append(decoder.coupler(torch.stack(blocks, dim=1)))
    return torch.cat(coupled, dim=1)[:, None]


def test_blocks_of_a_slot_know_each_other_and_no_other_slot() -> None:
    decoder = of_pixels()
    torch.nn.init.normal_(decoder.place)
    coupled = decoder.couple(slots_of())
    torch.testing.assert_close(coupled, plain_coupling(decoder, slots_of()))
    changed = slots_of()
    changed[:, :, 1, 0] += 1
    moved = (decoder.couple(changed) - coupled).abs().amax((0, 1, 3)) > 1e-6
    assert moved.tolist() == [False] * M + [True] * M + [False] * M


def test_masks_of_a_slot_are_those_of_its_blocks() -> None:
    decoder = of_pixels()
    decoded, inner = decoder(slots_of()), decoder.decoder(decoder.couple(slots_of()))
    assert decoded.masks.shape == (2, 1, K, 8, 8) and decoded.parts is None
    torch.testing.assert_close(decoded.masks[:, :, 1], inner.masks[:, :, M : 2 * M].sum(2))
    assert torch.equal(decoded.recon, inner.recon)


def test_what_the_wrapped_decoder_tells_is_told() -> None:
    decoder = of_tokens()
    video = torch.rand(2, 1, 3, 8, 8)
    decoded = decoder(slots_of(), video)
    assert decoder.space == "tokens" and decoder.grid == (2, 2)
    assert set(decoded.aux) == {"target", "tokenized"} and decoded.recon.shape == (2, 1, 4, 16)
    drawn = decoder.depict(slots_of())
    assert drawn is not None and drawn.shape == video.shape
    assert not torch.equal(drawn, decoder.depict(slots_of(1)))
    assert of_pixels().depict(slots_of()) is None


def test_blocks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 blocks for 8"):
        BlockCoupledDecoder(of_pixels().decoder, **(SHAPE | {"num_blocks": 3}))
