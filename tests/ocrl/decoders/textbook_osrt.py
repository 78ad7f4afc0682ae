"""OSRT's decoders in the order of products of their papers, with the weights of ours.

B batch, T frames, M = B * T, P rays, K slots, D slot size.
"""

import torch
from torch import Tensor
from torch.nn import functional


def attend(layer, queries: Tensor, slots: Tensor) -> Tensor:
    """Queries, keys and values of every ray and slot, as `torch.nn.MultiheadAttention` has them."""
    heads = (layer.num_heads, layer.head_dim)
    query, key, value = (
        projected.unflatten(-1, heads).transpose(1, 2)
        for projected in (layer.to_q(queries), layer.to_k(slots), layer.to_v(slots))
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return layer.to_out(mixed.transpose(1, 2).flatten(2))


def draw(layer, slots: Tensor, rays: Tensor) -> Tensor:
    """A perceptron on slots (...,D) beside rays (...,R), joined."""
    weight = torch.cat([layer.of_slots.weight, layer.of_rays.weight], dim=1)
    joined = torch.cat([slots, rays], dim=-1)
    return layer.layers(functional.linear(joined, weight, layer.of_slots.bias))


def mix(decoder, slots: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (M,P,3) and masks (M,K,P) of the slot mixer, for slots (M,K,D) and rays (M,P,6)."""
    code = decoder.encoding(rays)
    slots = decoder.norm_slots(slots)
    queries = decoder.to_queries(code)
    for layer in decoder.layers:
        queries = queries + attend(layer.attention, layer.norm(queries), slots)
        queries = queries + layer.mlp(queries)
    keys, queries = decoder.to_k(slots), decoder.norm_queries(queries)
    logits = keys @ queries.mT * queries.shape[-1] ** -0.5
    masks = logits.softmax(dim=1)
    return draw(decoder.draw, masks.mT @ slots, code).sigmoid(), masks


def broadcast(decoder, slots: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the per-slot light field: each slot beside each ray."""
    code = decoder.encoding(rays)[:, None]
    slots = decoder.norm_slots(slots)[:, :, None]
    shape = (*slots.shape[:2], code.shape[2], -1)
    made = draw(decoder.field, slots.expand(*shape), code.expand(*shape))
    masks = made[..., 3].softmax(dim=1)
    return (masks[..., None] * made[..., :3].sigmoid()).sum(1), masks
