"""Slot Attention's auto-encoder as the textbook has it. The reference of a test and a benchmark.

Channels first, keys and values made for every token, every slot broadcast to the full grid and
taken through every layer. Locatello et al. (2020, arXiv 2006.15055).

B images, K slots, D slot size, N tokens, C H W image.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-8


def reconstruct(model, images: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B,3,H,W) and masks (B,K,H,W), with the weights of a `SlotModel`."""
    tokens = encode(model.encoder.backbone, images)
    slots = bind(model.encoder.corrector, tokens, queries, model.encoder.num_iterations)
    return decode(model.decoder, slots)


def encode(backbone, images: Tensor) -> Tensor:
    """Tokens (B,N,F)."""
    features = images
    for layer in backbone.convolutions:
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.contiguous()
            features = functional.conv2d(
                features, weight, layer.bias, layer.stride, layer.padding
            ).relu()
    return backbone.head(backbone.position(features.flatten(2).transpose(1, 2)))


def bind(corrector, tokens: Tensor, queries: Tensor, num_iterations: int) -> Tensor:
    """Slots (B,K,D): algorithm 1 of the paper."""
    attention, slots = corrector.attention, queries
    inputs = attention.norm_inputs(tokens)
    keys, values = attention.to_k(inputs), attention.to_v(inputs)
    for _ in range(num_iterations):
        query = attention.to_q(corrector.norm_slots(slots)) * slots.shape[-1] ** -0.5
        weights = torch.einsum("bnd,bkd->bnk", keys, query).softmax(dim=-1) + EPS
        weights = weights / weights.sum(dim=1, keepdim=True)
        updates = torch.einsum("bnk,bnd->bkd", weights, values)
        slots = corrector.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        slots = slots + corrector.mlp(slots)
    return slots


def decode(decoder, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and masks: appendix E.3 of the paper."""
    height, width = decoder.grid
    hidden = decoder.norm(slots).flatten(0, 1)[:, :, None, None].expand(-1, -1, height, width)
    hidden = hidden + decoder.position.embedding().T.reshape(1, -1, height, width)
    for layer in decoder.layers:
        hidden = functional.conv_transpose2d(
            hidden,
            layer.weight.contiguous(),
            layer.bias,
            layer.stride,
            layer.padding,
            layer.output_padding,
        ).relu()
    output = decoder.output
    painted = functional.conv2d(hidden, output.weight.contiguous(), output.bias, 1, output.padding)
    painted = painted.unflatten(0, slots.shape[:2])
    colours, masks = painted[:, :, :3], painted[:, :, 3:].softmax(dim=1)
    return (colours * masks).sum(1), masks.squeeze(2)
