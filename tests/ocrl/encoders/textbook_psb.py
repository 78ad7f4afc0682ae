"""PSB as the textbook has it: whole maps over pairs of frames, masked. The reference of the tests.

B batch, T S query and key frames, K slots, H heads, N tokens.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from ocrl.nn.time_mixer import TimeAttention


def encode(encoder, video: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Slots and the last block's map of the present frame, with the weights of a PSB."""
    tokens = encoder.backbone(video.flatten(0, 1)).unflatten(0, video.shape[:2])
    queries = encoder.initializer(tokens[:, 0])
    slots = queries[:, None].expand(-1, video.shape[1], -1, -1)
    slots = encoder.norm_init(slots)
    for block in encoder.blocks:
        update, attn = bottom_up(block.bottom_up, block.norm_slots(slots), tokens, is_first)
        slots = slots + update
        normalized = block.norm_time(slots)
        if isinstance(block.time_mixer, TimeAttention):
            slots = slots + time_attention(block.time_mixer, normalized, is_first)
        else:
            slots = slots + gated_scan(block.time_mixer, normalized, is_first)
        if block.object_attention is not None:
            slots = slots + object_attention(block.object_attention, block.norm_objects(slots))
        slots = slots + block.mlp(slots)
    return slots, attn


def visibility(is_first: Tensor, window: int) -> Tensor:
    """(B,T,S), spelled out with loops."""
    num_frames = is_first.shape[1]
    visible = [[[False] * num_frames for _ in range(num_frames)] for _ in is_first]
    for b, starts in enumerate(is_first.tolist()):
        for t in range(num_frames):
            for s in range(t, max(-1, t - window), -1):
                visible[b][t][s] = True
                if starts[s]:
                    break
    return torch.tensor(visible, device=is_first.device)


def bottom_up(module, slots: Tensor, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
    """Appendix D.1.2 of the paper, and its ablation without competition."""
    heads = module.num_heads
    inputs = module.norm_inputs(tokens)
    query = rearrange(module.to_q(slots), "b t k (h d) -> b h t k d", h=heads)
    keys = rearrange(module.to_k(inputs), "b s n (h d) -> b h s n d", h=heads)
    values = rearrange(module.to_v(inputs), "b s n (h d) -> b h s n d", h=heads)
    logits = einsum(query, keys, "b h t k d, b h s n d -> b t h k s n") * query.shape[-1] ** -0.5
    bias, recency = time_terms(module, is_first.shape[1])
    if bias is not None:
        logits = logits + bias
    visible = visibility(is_first, module.window)[:, :, None, None, :, None]
    if module.is_inverted:
        # Masked before and after the softmax, as published (but finite: no group is empty).
        masked = logits.masked_fill(~visible, -1e9)
        competition = masked.flatten(2, 3).softmax(2).view(logits.shape)
        weights = competition.masked_fill(~visible, 0)
        if recency is not None:
            weights = weights * recency.exp()
        weights = weights / (weights.sum((-2, -1), keepdim=True) + module.eps)
    else:
        competition = logits.flatten(2, 3).softmax(2).view(logits.shape)
        logits = logits if recency is None else logits + recency
        logits = logits.masked_fill(~visible, -torch.inf)
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    read = einsum(weights, values, "b t h k s n, b h s n d -> b t k h d").flatten(-2)
    present = competition.sum(2).diagonal(dim1=1, dim2=3)
    return module.to_out(read), rearrange(present, "b k n t -> b t k n")


def time_terms(module, num_frames: int) -> tuple[Tensor | None, Tensor | None]:
    """Logit bias or log-weight (T,H,1,S,1)."""
    if module.time_bias is None:
        return None, None
    steps = torch.arange(num_frames, device=module.to_q.weight.device)
    table = module.time_bias(num_frames)
    if module.slope is not None:
        table = table - table[0] + steps[:, None] * module.slope
    pairs = table[(steps[:, None] - steps).clamp(min=0)]
    pairs = rearrange(pairs, "t s h -> t h 1 s 1")
    return (pairs, None) if module.slope is None else (None, pairs)


def time_attention(module, slots: Tensor, is_first: Tensor) -> Tensor:
    """Appendix D.1.3, or the joint form over all slots of all frames."""
    attention, num_frames, num_slots = module.attention, *slots.shape[1:3]
    query, keys, values = (
        rearrange(layer(slots), "b t k (h d) -> b h t k d", h=attention.num_heads)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    logits = einsum(query, keys, "b h t k d, b h s j d -> b h t k s j") * query.shape[-1] ** -0.5
    steps = torch.arange(num_frames, device=slots.device)
    table = module.time_bias(num_frames)[(steps[:, None] - steps).clamp(min=0)]
    logits = logits + rearrange(table, "t s h -> h t 1 s 1")
    visible = visibility(is_first, module.window)[:, None, :, None, :, None]
    if not module.mixes_slots:
        same = torch.eye(num_slots, dtype=torch.bool, device=slots.device)
        visible = visible & same[:, None, :]
    logits = logits.masked_fill(~visible, -torch.inf)
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)
    mixed = einsum(weights, values, "b h t k s j, b h s j d -> b t k h d").flatten(-2)
    return attention.to_out(mixed)


def gated_scan(module, slots: Tensor, is_first: Tensor) -> Tensor:
    """Equations 1 to 4 of Griffin, one frame after the other."""
    hidden = torch.zeros_like(module.to_in(slots[:, 0]))
    outputs = []
    for frame, starts in zip(slots.unbind(1), is_first.unbind(1), strict=True):
        inputs = module.to_in(frame)
        rate = 8 * functional.softplus(module.log_rate) * module.to_decay(inputs).sigmoid()
        decay = (-rate).exp()
        written = (1 - decay**2).sqrt() * module.to_write(inputs).sigmoid() * inputs
        hidden = torch.where(starts[:, None, None], 0, decay * hidden) + written
        outputs.append(module.to_out(functional.gelu(module.to_gate(frame)) * hidden))
    return torch.stack(outputs, 1)


def object_attention(module, slots: Tensor) -> Tensor:
    """Attention among the slots of a frame."""
    query, keys, values = (
        rearrange(layer(slots), "b t k (h d) -> b t h k d", h=module.num_heads)
        for layer in (module.to_q, module.to_k, module.to_v)
    )
    weights = (query @ keys.mT * query.shape[-1] ** -0.5).softmax(-1)
    return module.to_out(rearrange(weights @ values, "b t h k d -> b t k (h d)"))
