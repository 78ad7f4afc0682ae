"""Pooling: order does not matter, absent rows neither, and attention says where it looked."""

from pathlib import Path

import pytest
import torch
import yaml

from ocrl import checkpoint
from ocrl.agents import pooling

FILES = sorted((Path(__file__).parents[2] / "configs/pooling").glob("*.yaml"))
INVARIANT = [path for path in FILES if path.stem != "concatenation"]


def built(path, *, num_slots=5, slot_dim=7):
    torch.manual_seed(0)
    config = yaml.safe_load(path.read_text())
    del config["_partial_"]
    return checkpoint.build(config | {"slot_dim": slot_dim, "num_slots": num_slots})


def sets(*, seed=1, batch=3, num_slots=5, slot_dim=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, num_slots, slot_dim, generator=generator)


def test_every_class_has_a_file():
    """`Matching` is no choice of its own: it is made around any of them."""
    targets = {yaml.safe_load(path.read_text())["_target_"].rpartition(".")[2] for path in FILES}
    assert targets == {
        "SetTransformer",
        "ComparingTransformer",
        "MeanPooling",
        "RelationNetwork",
        "Concatenation",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_asked_for_meets_each_row_before_they_are_pooled(path):
    inner = built(path, slot_dim=11)
    matching = pooling.Matching(7, num_beside=2, match_dim=4, inner=inner)
    assert matching.out_dim == matching.inner.out_dim
    assert matching.has_fixed_size == (path.stem == "concatenation")
    slots = sets()
    slots[:, :4, 5:] = 0
    slots[:, 4, :5] = 0
    read = torch.cat([slots, matching.products(slots)], dim=-1)
    is_present = torch.tensor([[1, 0, 1, 0, 1]] * 3, dtype=torch.bool)
    for there in (None, is_present):
        torch.testing.assert_close(matching(slots, there), matching.inner(read, there))
        share, expected = matching.attention(slots, there), matching.inner.attention(read, there)
        assert (share is None) == (expected is None)
        assert share is None or torch.equal(share, expected)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_set_becomes_one_vector_through_which_every_weight_learns(path):
    module = built(path)
    pooled = module(sets())
    assert pooled.shape == (3, module.out_dim)
    # Not the sum: a last LayerNorm gives all sums of its output no gradient.
    (pooled * torch.randn(pooled.shape)).sum().backward()
    # Keys' biases shift all logits alike, which the softmax does not see.
    learns = {n: p.grad.abs().sum() > 0 for n, p in module.named_parameters()}
    assert all(learns[name] for name in learns if not name.endswith("to_k.bias")), learns


@pytest.mark.parametrize("path", INVARIANT, ids=lambda path: path.stem)
def test_the_order_of_slots_changes_nothing(path):
    module, slots = built(path), sets()
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(module(slots[:, order]), module(slots))
    is_present = torch.tensor([[1, 0, 1, 1, 0]] * 3, dtype=torch.bool)
    shuffled = module(slots[:, order], is_present[:, order])
    torch.testing.assert_close(shuffled, module(slots, is_present))


def test_the_order_of_slots_matters_to_concatenation():
    module, slots = built(FILES[0].with_stem("concatenation")), sets()
    assert not torch.allclose(module(slots.flip(1)), module(slots), atol=1e-3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_absent_rows_hold_changes_nothing(path):
    module, slots = built(path), sets()
    is_present = torch.tensor([[1, 0, 1, 1, 0]] * 3, dtype=torch.bool)
    other = torch.where(is_present[..., None], slots, sets(seed=2))
    torch.testing.assert_close(module(other, is_present), module(slots, is_present))
    assert not torch.allclose(module(slots), module(slots, is_present), atol=1e-3)


@pytest.mark.parametrize("path", INVARIANT, ids=lambda path: path.stem)
def test_absent_rows_are_as_if_the_set_were_smaller(path):
    module, slots = built(path), sets()
    is_present = torch.tensor([[1, 1, 1, 0, 0]] * 3, dtype=torch.bool)
    torch.testing.assert_close(module(slots, is_present), module(slots[:, :3]))
    nothing = module(slots, torch.zeros(3, 5, dtype=torch.bool))
    assert nothing.isfinite().all()
    torch.testing.assert_close(nothing[0], nothing[1])


@pytest.mark.parametrize("path", INVARIANT, ids=lambda path: path.stem)
def test_only_rows_that_are_there_are_computed(path, monkeypatch):
    module, slots = built(path), sets()
    is_present = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    expected = module.pool(slots, is_present)
    sizes = []
    pool = module.pool
    monkeypatch.setattr(module, "pool", lambda s, p: sizes.append(s.shape[1]) or pool(s, p))
    torch.testing.assert_close(module(slots, is_present), expected)
    assert sizes == [2]


def test_a_pooling_of_fixed_size_keeps_its_rows():
    module, slots = built(FILES[0].with_stem("concatenation")), sets()
    is_present = torch.tensor([[0, 1, 0, 0, 1]] * 3).bool()
    torch.testing.assert_close(module(slots, is_present), module.pool(slots, is_present))
    assert pooling.has_fixed_size(torch.nn.Sequential(module))
    assert not pooling.has_fixed_size(built(FILES[0].with_stem("set_transformer")))


def test_the_comparing_transformer_sees_how_slots_differ():
    # Golden: with identity maps a slot has the mean over the set of its distances beside it.
    sizes = {"num_layers": 1, "num_heads": 1, "mlp_factor": 1}
    module = pooling.ComparingTransformer(1, num_slots=3, dim=2, **sizes)
    comparison = module.comparison
    with torch.no_grad():
        for layer in (comparison.to_pairs, comparison.from_pairs):
            torch.nn.init.eye_(layer.weight)
            layer.bias.zero_()
        module.to_tokens.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
        module.to_tokens.bias.zero_()
    slots = torch.tensor([[[1.0], [4.0], [100.0]]])
    tokens, _ = module._tokens(slots, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(tokens[0, 1:3], torch.tensor([[1.0, 1.5], [4.0, 1.5]]))
    tokens, _ = module._tokens(slots, None)
    torch.testing.assert_close(tokens[0, 1], torch.tensor([1.0, 34.0]))


def test_the_read_out_token_alone_is_computed_as_all_tokens_would_be():
    module, slots = built(FILES[0].with_stem("set_transformer")), sets()
    tokens, mask = module._tokens(slots, None)
    for block in module.blocks:
        tokens = block(tokens, mask, num_read=None)
    torch.testing.assert_close(module(slots), module.norm_out(tokens[:, 0]))


def test_attention_is_a_share_of_the_slots_that_are_present():
    module, slots = built(FILES[0].with_stem("set_transformer")), sets()
    order = torch.tensor([3, 0, 4, 2, 1])
    share = module.attention(slots)
    torch.testing.assert_close(share.sum(-1), torch.ones(3))
    torch.testing.assert_close(module.attention(slots[:, order]), share[:, order])
    is_present = torch.tensor([[1, 0, 1, 1, 0], [1] * 5, [0] * 5], dtype=torch.bool)
    share = module.attention(slots, is_present)
    assert (share[~is_present] == 0).all() and share.isfinite().all()
    torch.testing.assert_close(share.sum(-1), torch.tensor([1.0, 1.0, 0.0]))


def test_attention_is_the_product_of_the_layers_weights():
    # One head, one layer: half what the read-out token keeps, half its softmax over the slots.
    sizes = {"num_layers": 1, "num_heads": 1, "mlp_factor": 1, "is_relative": False}
    module = pooling.SetTransformer(2, num_slots=2, dim=4, **sizes)
    slots = sets(batch=1, num_slots=2, slot_dim=2)
    tokens, _ = module._tokens(slots, None)
    block = module.blocks[0]
    normal = block.norm_inputs(tokens)[0].double()
    query, key = (
        normal @ layer.weight.double().T + layer.bias.double()
        for layer in (block.attention.to_q, block.attention.to_k)
    )
    expected = (query[0] @ key.T / 4**0.5).softmax(-1)[1:]
    found = module.attention(slots)[0].double()
    torch.testing.assert_close(found, expected / expected.sum(), atol=1e-6, rtol=0)


def test_the_relation_network_sees_pairs():
    # Golden: with identity maps the mean over pairs of relu(a_i + b_j) is known.
    module = pooling.RelationNetwork(1, num_slots=2, dim=1, num_layers=2)
    with torch.no_grad():
        for layer in (module.to_first, module.to_second):
            layer.weight.fill_(1.0)
        module.to_first.bias.zero_()
    module.inner = module.outer = torch.nn.Identity()
    pooled = module(torch.tensor([[[1.0], [-3.0]]]))
    torch.testing.assert_close(pooled, torch.tensor([[(2.0 + 0.0 + 0.0 + 0.0) / 4]]))


def test_a_slot_comes_with_what_sets_it_apart_from_those_present():
    sizes = {"num_layers": 1, "num_heads": 1, "mlp_factor": 1, "is_relative": True}
    module = pooling.SetTransformer(1, num_slots=3, dim=2, **sizes)
    with torch.no_grad():
        module.to_tokens.weight.copy_(torch.eye(2))
        module.to_tokens.bias.zero_()
    slots = torch.tensor([[[1.0], [4.0], [100.0]]])
    tokens, _ = module._tokens(slots, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(tokens[0, 1:3], torch.tensor([[1.0, -1.5], [4.0, 1.5]]))


def test_impossible_sizes_are_refused():
    sizes = {"num_layers": 1, "num_heads": 1, "mlp_factor": 1, "is_relative": True}
    with pytest.raises(ValueError, match="num_layers of at least 1, got 0"):
        pooling.SetTransformer(2, num_slots=2, dim=4, **{**sizes, "num_layers": 0})
    with pytest.raises(ValueError, match="num_heads must divide dim"):
        pooling.SetTransformer(2, num_slots=2, dim=4, **{**sizes, "num_heads": 3})
    with pytest.raises(ValueError, match="num_layers of at least 2, got 1"):
        pooling.RelationNetwork(2, num_slots=2, dim=4, num_layers=1)


def odd_ones(number):
    """Sets of four looks of two kinds, one of them alone; the number that the lone one bears."""
    generator = torch.Generator().manual_seed(number)
    kinds = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    both = torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(number)])
    lone = torch.randint(4, (number,), generator=generator)
    is_lone = torch.nn.functional.one_hot(lone, 4).bool()
    looks = kinds[torch.where(is_lone, both[:, :1], both[:, 1:])]
    looks = looks + 0.2 * torch.randn(looks.shape, generator=generator)
    borne = torch.randn(number, 4, generator=generator)
    return torch.cat([looks, borne[..., None]], dim=-1), borne[is_lone]


def test_a_relation_is_learned_from_few_examples():
    def error_on_others(name):
        torch.manual_seed(0)
        config = yaml.safe_load((FILES[0].parent / f"{name}.yaml").read_text())
        del config["_partial_"]
        reader = checkpoint.build({**config, "slot_dim": 13, "num_slots": 4})
        head = torch.nn.Linear(reader.out_dim, 1)
        optimizer = torch.optim.Adam([*reader.parameters(), *head.parameters()], lr=3e-3)
        (seen, said), (others, true) = odd_ones(128), odd_ones(2000)
        for _ in range(200):
            index = torch.randint(len(seen), (64,))
            loss = (head(reader(seen[index]))[:, 0] - said[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return float((head(reader(others))[:, 0] - true).square().mean())

    errors = {name: error_on_others(name) for name in ("comparing_transformer", "set_transformer")}

    assert errors["comparing_transformer"] < 0.15
    assert errors["comparing_transformer"] < 0.5 * errors["set_transformer"]
