"""B clips, T frames, K slots: models that are told the truth, and scores that follow from it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ocrl import metrics
from ocrl.baselines import grid_segmentation
from ocrl.discovery import MODEL, attention_masks, evaluate_discovery, segment
from ocrl.types import Clip, DecoderOutput, SlotOutput


def moving_squares(batch_size=2, num_frames=4, size=16, num_objects=3, truth=True, first_id=500):
    """Squares of 4 pixels that step to the right, each with its own colour and large id."""
    video = torch.zeros(batch_size, num_frames, 3, size, size, dtype=torch.uint8)
    ids = torch.zeros(batch_size, num_frames, size, size, dtype=torch.int32)
    for index in range(num_objects):
        row = 5 * (index % 3)
        for t in range(num_frames):
            left = t + 6 * (index // 3)
            video[:, t, index % 3, row : row + 4, left : left + 4] = 255 - 20 * index
            ids[:, t, row : row + 4, left : left + 4] = first_id + index
    first = torch.zeros(batch_size, num_frames, dtype=torch.bool)
    return Clip(video, first, segmentation={"entities": ids, "scene": ids} if truth else {})


class Oracle(nn.Module):
    """Sees the ground truth; `wrong` slots are shifted by one in every other frame."""

    def __init__(self, num_slots=5, space="pixels", is_swapping=False, grid=(16, 16)):
        super().__init__()
        self.encoder = SimpleNamespace(backbone=SimpleNamespace(grid=grid))
        self.decoder = OracleDecoder(num_slots, space, is_swapping)
        self.modes = []

    def train(self, mode=True):
        self.modes.append(mode)
        return super().train(mode)

    def encode(self, clip):
        self.decoder.clip = clip
        self.decoder.done = 0
        slots = torch.eye(self.decoder.num_slots).expand(*clip.video.shape[:2], -1, -1)
        attn = torch.zeros(*clip.video.shape[:2], self.decoder.num_slots, 256)
        attn[:, :, 2] = 1.0
        return SlotOutput(slots, attn)


class OracleDecoder(nn.Module):
    def __init__(self, num_slots, space, is_swapping):
        super().__init__()
        self.num_slots, self.space, self.is_swapping = num_slots, space, is_swapping

    def forward(self, slots, target=None, *, attn=None):
        assert attn.shape[:2] == slots.shape[:2]
        here = slice(self.done, self.done + slots.shape[1])
        self.done = here.stop
        if not self.clip.segmentation:
            winner = torch.zeros(*slots.shape[:2], 16, 16, dtype=torch.long)
        else:
            ids = self.clip.segmentation["scene"][:, here].long()
            winner = torch.where(ids == 0, 0, ids - 499).clamp(max=self.num_slots - 1)
        if self.is_swapping:
            odd = torch.arange(here.start, here.stop) % 2
            winner = (winner + odd[None, :, None, None]) % self.num_slots
        masks = nn.functional.one_hot(winner, self.num_slots).permute(0, 1, 4, 2, 3).float()
        assert target.shape[:2] == slots.shape[:2]
        return DecoderOutput(target, masks)

    def depict(self, slots, *, attn=None):
        if self.space != "tokens":
            return None
        return torch.full((*slots.shape[:2], 3, 8, 8), 1.5)


def test_a_perfect_model_scores_one_and_beats_the_baselines():
    result = evaluate_discovery(Oracle(), [moving_squares(), moving_squares()])
    assert result.presets == ["entities", "scene"]
    for preset in result.presets:
        own = result.table[MODEL][preset]
        for name in ("ari", "fg_ari", "mbo_i", "miou", "video_fg_ari", "video_mbo_i"):
            assert own[name] == 1.0
        assert own["video_identity_switches"] == 0.0
        assert result.table["grid"][preset]["video_mbo_i"] < 0.9
        for baseline in ("grid", "k-means"):
            assert len(result.per_clip[baseline][preset]["video_mbo_i"]) == 4
    assert result.num_clips == 4
    assert result.num_frames == 16
    assert result.num_slots == 5
    assert result.pictures == pytest.approx({"psnr": 100.0, "ssim": 1.0})
    assert not [w for w in result.warnings if "objects" in w or "is better" in w]


def test_swapping_slots_cost_the_clip_only():
    own = evaluate_discovery(Oracle(is_swapping=True), [moving_squares()]).table[MODEL]["scene"]
    assert own["fg_ari"] == own["mbo_i"] == 1.0
    assert own["video_mbo_i"] < 0.6
    assert own["video_identity_switches"] == 3.0


def test_the_mask_source_is_the_one_asked_for():
    result = evaluate_discovery(Oracle(), [moving_squares()], mask_source="attn")
    assert result.mask_source == "attn"
    assert result.table[MODEL]["scene"]["video_fg_ari"] == 0.0
    assert result.health["dead_slots"] == 4.0
    assert any(warning.startswith("Collapse") for warning in result.warnings)
    beaten = [warning for warning in result.warnings if "better than the slots in both" in warning]
    worse = {
        f"{preset}: {method}"
        for preset in ("entities", "scene")
        for method in ("grid", "k-means")
        for own, other in [(result.table[MODEL][preset], result.table[method][preset])]
        if other["video_fg_ari"] > own["video_fg_ari"] and other["video_mbo_i"] > own["video_mbo_i"]
    }
    assert worse and {warning.split(" is ")[0] for warning in beaten} == worse
    shown = result.table["k-means"]["scene"]["video_fg_ari"]
    assert any(
        f"(video FG-ARI {shown:.3f} against 0.000, video mBO " in warning for warning in beaten
    )
    with pytest.raises(ValueError, match="got 'encoder'"):
        evaluate_discovery(Oracle(), [moving_squares()], mask_source="encoder")


class Splitting(Oracle):
    """Holds the first object by two slots side by side, of one look, and the rest by one each."""

    def __init__(self):
        super().__init__(num_slots=5)
        forward = self.decoder.forward

        def split(slots, target=None, *, attn=None):
            decoded = forward(slots, target, attn=attn)
            masks = decoded.masks.clone()
            masks[:, :, 4, :2], masks[:, :, 1, :2] = masks[:, :, 1, :2], 0.0
            return DecoderOutput(decoded.recon, masks)

        self.decoder.forward = split

    def encode(self, clip):
        encoded = super().encode(clip)
        slots = encoded.slots.clone()
        slots[:, :, 4] = slots[:, :, 1]
        return SlotOutput(slots, encoded.attn.roll(-1, dims=2))


def test_merged_masks_are_what_is_scored():
    own = evaluate_discovery(Splitting(), [moving_squares()])
    merged = evaluate_discovery(Splitting(), [moving_squares()], merge=0.7, merge_by="slots")
    assert own.table[MODEL]["scene"]["mbo_i"] < 1.0
    assert merged.table[MODEL]["scene"]["mbo_i"] == 1.0
    assert merged.table["grid"] == own.table["grid"]
    assert merged.health["slots_left"] == 4.0 and "slots_left" not in own.health
    assert merged.num_slots == own.num_slots == 5
    assert (merged.examples[0].masks[:, 4] == 0).all()
    # Their attention does not overlap.
    apart = evaluate_discovery(Splitting(), [moving_squares()], merge=0.7)
    assert apart.table == own.table and apart.health["slots_left"] == 5.0
    with pytest.raises(ValueError, match="got 0"):
        evaluate_discovery(Splitting(), [moving_squares()], merge=0.0)


def test_the_protocol_decides_size_and_background():
    clip = moving_squares()
    result = evaluate_discovery(Oracle(), [clip], protocol="objectcentricbench")
    truth = clip.segmentation["scene"].repeat_interleave(16, -1).repeat_interleave(16, -2)
    cells = grid_segmentation(5, (256, 256)).expand_as(truth)
    expected = metrics.discovery_metrics(truth, cells, protocol="objectcentricbench")
    for name, value in metrics.summarize(expected).items():
        assert result.table["grid"]["scene"][name] == pytest.approx(value)
    assert result.table[MODEL]["scene"]["mbo_i"] == pytest.approx(1.0, abs=0.1)
    assert result.examples[0].predictions[MODEL].shape == (4, 16, 16)


def test_without_ground_truth_there_are_pictures_and_health():
    result = evaluate_discovery(Oracle(), [moving_squares(truth=False)])
    assert result.presets == []
    assert result.table == {}
    assert set(result.pictures) == {"psnr", "ssim"}
    assert result.health["largest_share"] == 1.0
    assert list(result.examples[0].predictions) == [MODEL]


def test_features_are_no_pictures():
    result = evaluate_discovery(Oracle(space="features"), [moving_squares()])
    assert result.pictures == {}
    assert result.examples[0].recon is None


def test_tokens_are_depicted_from_the_slots_and_not_scored():
    result = evaluate_discovery(Oracle(space="tokens"), [moving_squares()], num_examples=1)
    assert result.pictures == {}
    assert torch.equal(result.examples[0].recon, torch.ones(4, 3, 16, 16))
    assert len(result.examples) == 1 and result.examples[0].parts is None


def test_presets_that_are_missing_are_left_out_and_baselines_can_be():
    result = evaluate_discovery(
        Oracle(), [moving_squares()], presets=["scene", "other"], baselines=False
    )
    assert result.presets == ["scene"]
    assert list(result.table) == [MODEL]


def test_more_objects_than_slots_is_said_with_numbers():
    result = evaluate_discovery(Oracle(num_slots=3), [moving_squares(num_objects=6)])
    crowded = [warning for warning in result.warnings if "more objects" in warning]
    assert len(crowded) == 2
    assert "up to 6" in crowded[0]
    assert "num_slots=3" in crowded[0]
    assert "num_slots=7" in crowded[0]


def test_curves_follow_time_and_take_clips_of_unlike_length():
    clips = [moving_squares(num_frames=2), moving_squares(num_frames=4)]
    curves = evaluate_discovery(Oracle(), clips).curves
    assert curves[MODEL]["scene"]["fg_ari"] == [1.0] * 4
    assert len(curves["grid"]["scene"]["mbo_i"]) == 4
    assert "video_fg_ari" not in curves[MODEL]["scene"]


def test_a_long_video_is_decoded_piece_by_piece():
    result = evaluate_discovery(Oracle(), [moving_squares(batch_size=1, num_frames=150)])
    assert result.table[MODEL]["scene"]["video_mbo_i"] == 1.0


def test_classes_are_scored_where_their_table_is():
    clip = moving_squares()
    table = {
        "id": torch.tensor([500, 501, 502, 0]).expand(2, 4, 4),
        "category": torch.tensor([0, 0, 1, 0]).expand(2, 4, 4),
    }
    clip = Clip(clip.video, clip.is_first, segmentation=clip.segmentation, properties=table)
    own = evaluate_discovery(Oracle(), [clip]).table[MODEL]
    # Two objects of class 0 are in two slots: half of each at best; class 1 is found.
    assert own["entities"]["mbo_c"] == own["entities"]["video_mbo_c"] == 0.75
    assert "mbo_c" not in own["scene"]


def test_the_mode_is_given_back():
    model = Oracle().train()
    model.modes.clear()
    evaluate_discovery(model, [moving_squares()])
    assert model.modes == [False, True]
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate_discovery(model.eval(), [])
    assert not model.training


def test_bad_clips():
    clip = moving_squares()
    several = Clip(clip.video[:, :, None], clip.is_first)
    with pytest.raises(ValueError, match="one camera"):
        evaluate_discovery(Oracle(), [several])
    small = Clip(
        clip.video, clip.is_first, segmentation={"scene": clip.segmentation["scene"][..., :8]}
    )
    with pytest.raises(ValueError, match=r"'scene': expected .*\(2, 4, 16, 16\)"):
        evaluate_discovery(Oracle(), [small])
    with pytest.raises(ValueError, match="protocol"):
        evaluate_discovery(Oracle(), [clip], protocol="unheard-of")


def test_json_and_scalars_are_finite():
    clip = moving_squares()
    empty = Clip(clip.video, clip.is_first, segmentation={"scene": clip.segmentation["scene"] * 0})
    result = evaluate_discovery(Oracle(), [empty])
    assert math.isnan(result.table[MODEL]["scene"]["fg_ari"])
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["table"][MODEL]["scene"]["fg_ari"] is None
    scalars = evaluate_discovery(Oracle(), [clip]).scalars()
    assert scalars["scene/video_fg_ari"] == 1.0
    assert {"scene/grid/video_mbo_i", "health/slots_in_use", "psnr"} <= set(scalars)
    assert "scene/fg_ari" not in result.scalars()


def test_masks_are_grown_before_the_largest_wins():
    masks = torch.zeros(1, 1, 2, 1, 2)
    masks[0, 0, 0, 0], masks[0, 0, 1, 0] = torch.tensor([1.0, 0.0]), torch.tensor([0.4, 0.6])
    # Slot 0 falls as 1, .75, .25, 0 and slot 1 rises as .4, .45, .55, .6.
    assert segment(masks, (1, 4)).tolist() == [[[[0, 0, 1, 1]]]]
    masks[0, 0, 1, 0] = torch.tensor([0.0, 0.3])
    assert segment(masks, (1, 4)).tolist() == [[[[0, 0, 0, 1]]]]


def test_attention_of_several_views_is_refused():
    output = SlotOutput(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 12))
    encoder = SimpleNamespace(backbone=SimpleNamespace(grid=(3, 4)))
    assert attention_masks(output, encoder).shape == (1, 1, 2, 3, 4)
    encoder.backbone.grid = (3, 2)
    with pytest.raises(ValueError, match="3 x 2 tokens of one view, got 12"):
        attention_masks(output, encoder)
