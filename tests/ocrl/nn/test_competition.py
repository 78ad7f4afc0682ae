import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ocrl.nn import competition as module
from ocrl.nn.competition import compete, competition_over_time


def plain(query, keys, values, visible, bias=None, recency=None) -> Tensor:
    """The whole map (B,T,G*R,S,N), masked."""
    logits = torch.einsum("bgtre,bgsne->btgrsn", query, keys)
    batch_size, num_frames, num_groups, num_rows = logits.shape[:4]
    joined = logits.flatten(2, 3)
    slots = 1 if bias is None and recency is None else joined.shape[2]
    if bias is not None:
        slots //= bias.shape[-1]
        joined = joined + bias.repeat_interleave(slots, -1).transpose(1, 2)[None, ..., None]
    weights = joined.softmax(2) * visible[:, :, None, :, None]
    if recency is not None:
        slots //= recency.shape[-1]
        weights = weights * recency.exp().repeat_interleave(slots, -1).mT[None, ..., None]
    weights = weights.view(batch_size, num_frames, num_groups, num_rows, *weights.shape[3:])
    return torch.einsum("btgrsn,bgsnv->bgtrv", weights, values)


def make_inputs(num_groups=1, num_rows=4, num_frames=5, num_tokens=7, window=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    query = draw(2, num_groups, num_frames, num_rows, 6)
    keys, values = (
        draw(2, num_groups, num_frames, num_tokens, 6),
        draw(2, num_groups, num_frames, num_tokens, 5),
    )
    distance = torch.arange(num_frames)[:, None] - torch.arange(num_frames)
    visible = ((distance >= 0) & (distance < window)).expand(2, -1, -1).clone()
    visible[1] &= torch.eye(num_frames, dtype=torch.bool) | (torch.arange(num_frames) > 1)
    heads = 2 * num_groups if num_rows % 2 == 0 else num_groups
    return query, keys, values, visible, draw(num_frames, num_frames, heads)


@pytest.mark.parametrize("num_groups", [1, 3])
@pytest.mark.parametrize("term", ["none", "bias", "recency"])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("window", [1, 3, 9])
def test_equals_plain_with_gradients(num_groups, term, is_shared, window, monkeypatch) -> None:
    query, keys, values, visible, numbers = make_inputs(num_groups, window=window)
    monkeypatch.setitem(module._MAX_ENTRIES, True, 1)  # several runs of tokens, were there 64
    terms = {} if term == "none" else {term: numbers}
    given_values = None if is_shared else values
    ours = competition_over_time(query, keys, given_values, visible=visible, window=window, **terms)
    theirs = plain(query, keys, keys if is_shared else values, visible, **terms)
    torch.testing.assert_close(ours, theirs)
    inputs = [query, keys, *([] if is_shared else [values]), *terms.values()]
    weight = torch.randn(ours.shape, dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_cut_into_runs_of_tokens(monkeypatch) -> None:
    query, keys, _, visible, recency = make_inputs(num_tokens=150)
    whole = competition_over_time(query, keys, visible=visible, window=3, recency=recency)
    inputs = (query, keys, recency)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setitem(module._MAX_ENTRIES, True, 1)
    cut = competition_over_time(query, keys, visible=visible, window=3, recency=recency)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(torch.autograd.grad(cut.square().sum(), inputs), expected)


@pytest.mark.parametrize("window", [9, 20])
@pytest.mark.parametrize("max_kept", [0, 2000, 2**22])
@pytest.mark.parametrize("is_shared", [True, False])
def test_blocks_of_several_frames_and_kept_maps(window, max_kept, is_shared, monkeypatch) -> None:
    query, keys, values, visible, recency = make_inputs(num_frames=20, window=window)
    monkeypatch.setattr(module, "_MAX_KEPT", max_kept)
    blocks = list(module._blocks(query, keys, window))
    assert max(block.frames.stop - block.frames.start for block in blocks) > 1
    given_values = None if is_shared else values
    inputs = [query, keys, recency, *([] if is_shared else [values])]
    terms = {"visible": visible, "recency": recency}
    ours = competition_over_time(query, keys, given_values, window=window, **terms)
    theirs = plain(query, keys, keys if is_shared else values, **terms)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("window", [1, 8, 24])
@pytest.mark.parametrize("num_tokens", [7, 150])
def test_blocks_cover_the_band_once_and_little_more(window, num_tokens, monkeypatch) -> None:
    query, keys, *_ = make_inputs(num_frames=24, num_tokens=num_tokens, window=window)
    if num_tokens > 64:
        monkeypatch.setitem(module._MAX_ENTRIES, True, 1)
    rows = query.shape[3]
    covered = torch.zeros(24, 24, num_tokens, dtype=torch.int64)
    for block in module._blocks(query, keys, window):
        frames = slice(block.rows.start // rows, block.rows.stop // rows)
        covered[frames, block.frames, block.tokens] += 1
    distance = torch.arange(24)[:, None] - torch.arange(24)
    band = ((distance >= 0) & (distance < window))[..., None].expand(covered.shape)
    assert (covered[band] == 1).all() and covered.max() == 1
    assert covered[~band].sum() <= module._MAX_WASTE * band.sum()


def test_maps_are_kept_within_their_budget_and_only_for_a_gradient() -> None:
    def kept(query: Tensor, keys: Tensor) -> int:
        sizes: dict[int, int] = {}

        def pack(saved: Tensor) -> Tensor:
            sizes[saved.untyped_storage().data_ptr()] = saved.numel()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            sums = competition_over_time(query, keys, visible=visible, window=20)
        del sums
        return sum(sizes.values())

    query, keys, _, visible, _ = make_inputs(num_rows=1, num_frames=20, window=20)
    inputs = query.numel() + keys.numel() + visible.numel()
    assert inputs < kept(query, keys) <= inputs + keys.numel()
    assert kept(query.detach(), keys.detach()) == 0


def test_gradients_by_finite_differences() -> None:
    query, keys, values, visible, bias = make_inputs(2, 2, 3, 3)

    def function(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return competition_over_time(query, keys, values, visible=visible, window=3, bias=bias)

    assert torch.autograd.gradcheck(function, (query, keys, values, bias))


def test_golden() -> None:
    # Two slots, one token per frame: the second slot's logit is log 3 above the first's.
    query = torch.tensor([1.0, 3.0]).log().expand(2, 2).reshape(1, 1, 2, 2, 1)
    keys, values = torch.ones(1, 1, 2, 1, 1), torch.tensor([4.0, 8.0]).view(1, 1, 2, 1, 1)
    visible = torch.ones(1, 2, 2, dtype=torch.bool).tril()
    recency = torch.tensor([[1.0, 1.0], [0.5, 1.0]]).log()[..., None]
    sums = competition_over_time(query, keys, values, visible=visible, window=2, recency=recency)
    # Frame 0: shares 1/4 and 3/4 of 4; frame 1: the same shares of 0.5 * 4 + 8.
    torch.testing.assert_close(sums.flatten(), torch.tensor([1.0, 3.0, 2.5, 7.5]))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99)
)
def test_mass_is_shared_out_whole(num_groups, num_rows, num_frames, window, seed) -> None:
    query, keys, _, visible, _ = make_inputs(num_groups, num_rows, num_frames, 7, window, seed)
    ones = torch.ones_like(keys[..., :1])
    mass = competition_over_time(query, keys, ones, visible=visible, window=window).sum((1, 3, 4))
    torch.testing.assert_close(mass, visible.sum(-1).double() * 7)


@pytest.mark.parametrize("is_binary", [True, False])
def test_competition_sums_to_one_over_heads_and_slots(is_binary) -> None:
    for num_groups in (1, 3):
        logits = 1e2 * torch.randn(2, num_groups, 3, 4, 5, dtype=torch.float64)
        joined = logits.transpose(1, 2).flatten(2, 3)
        expected = joined.softmax(2).view(2, 3, num_groups, 4, 5).transpose(1, 2)
        scaled = logits / math.log(2) if is_binary else logits
        attn = compete(scaled, is_binary=is_binary)
        torch.testing.assert_close(attn, expected)
        torch.testing.assert_close(attn.sum((1, 3)), torch.ones(2, 3, 5, dtype=torch.float64))


def test_tokens_without_gradient_get_none() -> None:
    query, keys, values, visible, _ = make_inputs()
    sums = competition_over_time(query, keys.detach(), values.detach(), visible=visible, window=3)
    sums.sum().backward()
    assert query.grad is not None and keys.grad is None and values.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    query, keys, _, visible, recency = make_inputs(num_tokens=40)
    expected = competition_over_time(query, keys, visible=visible, window=3, recency=recency)
    half = [tensor.detach().to(dtype).requires_grad_() for tensor in (query, keys)]
    sums = competition_over_time(*half, visible=visible, window=3, recency=recency.detach().float())
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), expected, atol=0.5, rtol=0.05)
    sums.sum().backward()
    assert [tensor.grad.dtype for tensor in half] == [dtype, dtype]


def test_invisible_frames_have_no_say() -> None:
    query, keys, values, visible, _ = make_inputs()
    before = competition_over_time(query, keys, values, visible=visible, window=3)
    with torch.no_grad():
        keys[1, :, 0], values[1, :, 0] = 9.0, 1e6
    after = competition_over_time(query, keys, values, visible=visible, window=3)
    # In the second sample no later frame sees frame 0.
    assert torch.equal(before[1, :, 1:], after[1, :, 1:])
    assert not torch.equal(before[1, :, 0], after[1, :, 0])


def test_pairs_beyond_the_window_are_left_out() -> None:
    query, keys, values, _, _ = make_inputs()
    distance = torch.arange(5)[:, None] - torch.arange(5)
    band = ((distance >= 0) & (distance < 2)).expand(2, -1, -1)
    everything = torch.ones_like(band)
    sums = competition_over_time(query, keys, values, visible=everything, window=2)
    torch.testing.assert_close(sums, plain(query, keys, values, band))
