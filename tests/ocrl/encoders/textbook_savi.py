"""SAVi as its public forms have it: keys and values made. The reference of a test and a benchmark.

B batch, T frames, K slots, D slot size, N tokens, F token features.
"""

import torch
from torch import Tensor

EPS = 1e-8


def encode(encoder, tokens: Tensor, *, layout: str) -> Tensor:
    """Slots (B,T,K,D) of a clip's tokens (B,T,N,F), which is one episode.

    `frames first` makes the keys and values of all frames first, takes each frame by its index
    and holds the weights as (B,N,K), as STEVE does; `frame by frame` makes them as each frame
    comes and holds (B,K,N), as SOLD does.
    """
    attention, num_frames = encoder.corrector.attention, tokens.shape[1]
    age = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    slots, outputs = encoder.initializer(tokens[:, 0]), []
    is_indexed = layout == "frames first"
    if is_indexed:
        inputs = attention.norm_inputs(tokens)
        all_keys, all_values = attention.to_k(inputs), attention.to_v(inputs)
    frames = tokens.unbind(1)
    for t in range(num_frames):
        if is_indexed:
            keys, values = all_keys[:, t], all_values[:, t]
        else:
            inputs = attention.norm_inputs(frames[t])
            keys, values = attention.to_k(inputs), attention.to_v(inputs)
        if t:
            slots = encoder.predictor([slots], [frames[t]], age + t)
        rounds = encoder.num_iterations_rest if t else encoder.num_iterations_first
        for _ in range(rounds):
            slots = bind(encoder.corrector, slots, keys, values, is_indexed=is_indexed)
        outputs.append(slots)
    return torch.stack(outputs, dim=1)


def bind(corrector, slots: Tensor, keys: Tensor, values: Tensor, *, is_indexed: bool) -> Tensor:
    """One iteration of slot attention."""
    query = corrector.attention.to_q(corrector.norm_slots(slots)) * slots.shape[-1] ** -0.5
    if is_indexed:
        weights = torch.einsum("bnd,bkd->bnk", keys, query).softmax(dim=-1) + EPS
        weights = weights / weights.sum(dim=1, keepdim=True)
        updates = torch.einsum("bnk,bnd->bkd", weights, values)
    else:
        weights = torch.einsum("bkd,bnd->bkn", query, keys).softmax(dim=1) + EPS
        weights = weights / weights.sum(dim=-1, keepdim=True)
        updates = torch.einsum("bkn,bnd->bkd", weights, values)
    slots = corrector.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
    return slots if corrector.mlp is None else slots + corrector.mlp(slots)
