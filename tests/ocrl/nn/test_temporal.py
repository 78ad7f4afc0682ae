import pytest
import torch
from torch import Tensor

from ocrl.nn.temporal import (
    PADDING,
    CompetitiveCrossAttention,
    RelativeTimeBias,
    frame_distances,
    normalized_tokens,
    segments_of,
    visible_cache,
    visible_frames,
)


def test_segments_and_visibility() -> None:
    is_first = torch.tensor([[True, False, True, False, False]])
    segments = segments_of(is_first)
    assert segments.tolist() == [[1, 1, 2, 2, 2]]
    assert visible_frames(segments, 2).long().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    ]


def test_first_frame_needs_no_flag() -> None:
    with_flag = segments_of(torch.tensor([[True, False, True]]))
    without = segments_of(torch.tensor([[False, False, True]]))
    assert torch.equal(visible_frames(with_flag, 9), visible_frames(without, 9))


def test_cache_is_visible_by_age() -> None:
    visible = visible_cache(torch.tensor([0, 2, 9]), 4)
    assert visible[:, 0].long().tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]


def test_distances_end_on_one_frame() -> None:
    assert frame_distances(2, 3, device=torch.device("cpu")).tolist() == [[1, 0, -1], [2, 1, 0]]


def test_normalized_tokens() -> None:
    tokens = 5 + 3 * torch.randn(2, 3, 4, 6)
    padded = normalized_tokens(tokens)
    assert padded.shape == (2, 3, 4, 6 + PADDING)
    torch.testing.assert_close(padded[..., :6], torch.nn.LayerNorm(6)(tokens))
    assert padded[..., 6].eq(1).all() and padded[..., 7:].eq(0).all()


def test_normalized_tokens_have_statistics_in_float32() -> None:
    tokens = (300 + torch.randn(2, 3, 4, 64)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        padded = normalized_tokens(tokens)
    assert padded.dtype == torch.bfloat16
    expected = torch.nn.functional.layer_norm(tokens.float(), (64,))
    torch.testing.assert_close(padded[..., :64].float(), expected, atol=0.02, rtol=0.01)


def test_time_bias_tells_distances_apart_and_clips() -> None:
    torch.manual_seed(0)
    table = RelativeTimeBias(3, max_distance=5)(8)
    assert table.shape == (8, 3)
    assert torch.pdist(table[:5]).min().item() > 1e-2
    assert torch.equal(table[4:], table[4:5].expand(4, -1))


def make_attention(**options) -> CompetitiveCrossAttention:
    torch.manual_seed(0)
    settings = {
        "token_dim": 6,
        "num_heads": 2,
        "window": 4,
        "time_bias": "none",
        "max_distance": 4,
        "is_inverted": True,
    }
    return CompetitiveCrossAttention(8, **(settings | options))


def inputs(num_frames: int = 5, num_slots: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    slots = torch.randn(2, num_frames, num_slots, 8, generator=generator)
    tokens = torch.randn(2, num_frames, 7, 6, generator=generator)
    visible = visible_frames(torch.zeros(2, num_frames, dtype=torch.int64), 4)
    return slots, normalized_tokens(tokens), visible


def test_absorbed_equals_projected(monkeypatch) -> None:
    attention = make_attention(time_bias="recency")
    updates = []
    for is_absorbed in (True, False):
        monkeypatch.setattr(
            attention, "_is_absorbed", lambda *args, answer=is_absorbed: answer, raising=True
        )
        updates.append(attention(*inputs())[0])
    torch.testing.assert_close(*updates)


@pytest.mark.parametrize(
    ("heads", "num_frames", "is_absorbed"), [(1, 48, True), (4, 1, True), (4, 48, False)]
)
def test_absorbs_where_it_is_less_work(heads: int, num_frames: int, is_absorbed: bool) -> None:
    attention = make_attention(num_heads=heads, window=48)
    slots, tokens = torch.empty(1, num_frames, 3, 8), torch.empty(1, num_frames, 4, 6 + PADDING)
    assert attention._is_absorbed(slots, tokens) == is_absorbed


def test_eps_matters_to_slots_that_win_nothing_only() -> None:
    # The first slot wins all; the mean of the second is that of (almost) nothing: zero.
    attention = make_attention(num_heads=1, window=1)
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out):
            layer.weight.zero_()
            layer.weight.fill_diagonal_(1.0)
        tokens = torch.zeros(1, 1, 2, 6)
        tokens[..., 0] = 1.0
        slots = torch.zeros(1, 1, 2, 8)
        slots[0, 0, 0, 0] = 60.0
        slots[0, 0, 1, 0] = -60.0
        visible = torch.ones(1, 1, 1, dtype=torch.bool)
        update, attn, _ = attention(slots, normalized_tokens(tokens), visible)
    torch.testing.assert_close(attn, torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]))
    expected = torch.nn.functional.layer_norm(tokens[0, 0, 0], (6,))
    torch.testing.assert_close(update[0, 0, 0, :6], expected * (2 / (2 + 1e-5)))
    assert update[0, 0, 1].abs().max().item() < 1e-6


def test_far_past_with_huge_recency_stays_finite() -> None:
    attention = make_attention(time_bias="recency")
    torch.nn.init.constant_(attention.slope, 1e3)
    update, _, _ = attention(*inputs())
    assert update.isfinite().all()


def test_recency_weighs_frames_after_the_competition() -> None:
    # A slope of -inf (here -1e4) leaves the present frame only, whatever the window.
    attention = make_attention(time_bias="recency", num_heads=1)
    present = make_attention(window=1, num_heads=1)
    present.load_state_dict(attention.state_dict(), strict=False)
    torch.nn.init.constant_(attention.slope, -1e4)
    torch.testing.assert_close(attention(*inputs()), present(*inputs()))


@pytest.mark.parametrize(
    ("heads", "time_bias"), [(1, "logits"), (1, "recency"), (2, "recency"), (2, "none")]
)
def test_slots_that_are_alike_bind_each_frame_once_with_the_same_result(
    heads: int, time_bias: str, monkeypatch
) -> None:
    attention = make_attention(num_heads=heads, time_bias=time_bias, window=3)
    slots, tokens, _ = inputs(num_frames=6)
    segments = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    slots = torch.where(segments[..., None, None] == 0, slots[:, :1], slots[:, -1:])
    slots.requires_grad_()
    visible = visible_frames(segments, 9)
    expected = attention(slots, tokens, visible)
    gradients = torch.autograd.grad(expected[0].square().sum(), [slots, attention.to_k.weight])
    monkeypatch.setattr(CompetitiveCrossAttention, "_read_absorbed", None)
    monkeypatch.setattr(CompetitiveCrossAttention, "_read_projected", None)
    result = attention(slots, tokens, visible, are_alike=True)
    torch.testing.assert_close(result, expected)
    own = torch.autograd.grad(result[0].square().sum(), [slots, attention.to_k.weight])
    # Which of two equal slots a gradient goes to does not matter, their sum does.
    torch.testing.assert_close(own[0].sum(1), gradients[0].sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own[1], gradients[1], rtol=1e-4, atol=1e-5)


def test_heads_that_the_time_bias_sets_against_each_other_are_bound_for_each_pair() -> None:
    attention = make_attention(num_heads=2, time_bias="logits")
    slots, tokens, visible = inputs()
    slots = slots[:, :1].expand_as(slots)
    expected = attention(slots, tokens, visible)
    torch.testing.assert_close(attention(slots, tokens, visible, are_alike=True), expected)
