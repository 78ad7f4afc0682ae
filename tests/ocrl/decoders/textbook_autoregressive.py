"""The autoregressive decoder as a textbook writes it: one-hot vectors, whole maps, no cache.

M frames, K slots, D slot size, N tokens, V vocabulary, E size of the transformer.
"""

import torch
from einops import rearrange
from torch.nn import functional


def attend(query, key, value, *, num_heads, is_causal):
    """Attention (M,L,E) and its map (M,heads,L,S)."""
    query, key, value = (
        rearrange(x, "m n (h d) -> m h n d", h=num_heads) for x in (query, key, value)
    )
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if is_causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1).to(logits.device)
        logits = logits.masked_fill(later, float("-inf"))
    attn = logits.softmax(-1)
    return rearrange(attn @ value, "m h n d -> m n (h d)"), attn


def mix(transformer, sequence, context, *, is_causal):
    """The transformer's output (M,N,E) and the last layer's map of slots, mean over heads."""
    hidden = transformer.norm_inputs(sequence)
    for index, layer in enumerate(transformer.layers):
        normal = hidden if index == 0 else layer.norm_self(hidden)
        maps = layer.attention.to_qkv.weight.chunk(3)
        query, key, value = (functional.linear(normal, weight) for weight in maps)
        heads = layer.attention.num_heads
        read, _ = attend(query, key, value, num_heads=heads, is_causal=is_causal)
        hidden = hidden + layer.attention.to_out(read)
        query = layer.reading.to_q(layer.norm_slots(hidden))
        maps = layer.reading.to_kv.weight.chunk(2)
        key, value = (functional.linear(context, weight) for weight in maps)
        read, attn = attend(query, key, value, num_heads=heads, is_causal=False)
        hidden = hidden + layer.reading.to_out(read)
        hidden = hidden + layer.mlp(layer.norm_mlp(hidden))
    return transformer.norm_outputs(hidden), attn.mean(1).transpose(1, 2)


def one_hot(decoder, tokens):
    """Tokens as vectors (M,N,V); features as they are."""
    if tokens.is_floating_point():
        return tokens
    return functional.one_hot(tokens, decoder.head.out_features).to(decoder.head.weight.dtype)


def read(decoder, values, cells):
    """One-hot tokens or features (M,n,V) of the cells as the transformer reads them."""
    is_tokens = decoder.space == "tokens"
    embedded = values @ decoder.embed.weight if is_tokens else decoder.embed(values)
    return embedded if decoder.position is None else embedded + decoder.position.table[cells]


def context_of(decoder, slots):
    """The slots (M,K,D) as the transformer reads them."""
    return decoder.norm_context(decoder.to_context(slots))


def foretell(decoder, tokens, slots, *, index=0):
    """Logits or features (M,N,V) and masks (M,K,N) of tokens (M,N) in one of the orders."""
    order = decoder.order_table[index]
    values = one_hot(decoder, tokens)[:, order]
    start = decoder.special[index].expand(len(slots), 1, -1)
    sequence = torch.cat([start, read(decoder, values, order)[:, :-1]], dim=1)
    context = context_of(decoder, slots)
    hidden, attn = mix(decoder.transformer, sequence, context, is_causal=True)
    foretold, masks = torch.empty_like(values), torch.empty_like(attn)
    foretold[:, order], masks[:, :, order] = decoder.head(hidden), attn
    return foretold, masks


def cross_entropy(decoder, logits, tokens):
    """Sum over tokens, mean over frames."""
    return -(one_hot(decoder, tokens) * logits.log_softmax(-1)).sum() / len(tokens)


@torch.no_grad()
def generate(decoder, slots):
    """Greedy tokens (M,N) or features (M,N,F): the whole beginning again for every token."""
    order, context = decoder.order_table[0], context_of(decoder, slots)
    sequence = decoder.special[0].expand(len(slots), 1, -1)
    made = []
    for cell in order:
        hidden, _ = mix(decoder.transformer, sequence, context, is_causal=True)
        foretold = decoder.head(hidden[:, -1])
        made.append(foretold.argmax(-1) if decoder.space == "tokens" else foretold)
        values = one_hot(decoder, made[-1][:, None])
        sequence = torch.cat([sequence, read(decoder, values, cell[None])], dim=1)
    return torch.stack([made[place] for place in order.argsort()], dim=1)
