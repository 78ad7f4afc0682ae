"""P pixels, B batch, T frames: the expected values are worked by hand or come from sklearn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from ocrl import metrics
from ocrl.types import VOID_ID


def ids(*rows):
    return torch.tensor(rows)


class TestAri:
    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**31),
        num_objects=st.integers(1, 9),
        num_segments=st.integers(1, 9),
        agreement=st.floats(0, 1),
        foreground=st.booleans(),
    )
    def test_equals_sklearn_on_the_pixels_that_count(
        self, seed, num_objects, num_segments, agreement, foreground
    ):
        rng = np.random.default_rng(seed)
        names = rng.choice(60000, size=num_objects, replace=False)
        names[0] = 0
        truth = names[rng.integers(num_objects, size=(3, 50))]
        found = np.where(
            rng.random((3, 50)) < agreement, truth, rng.integers(num_segments, size=(3, 50))
        )
        truth[rng.random((3, 50)) < 0.1] = VOID_ID
        scores = metrics.ari(
            torch.from_numpy(truth), torch.from_numpy(found), foreground=foreground
        )
        for score, t, f in zip(scores.tolist(), truth, found, strict=True):
            counted = (t != VOID_ID) & ((t != 0) | (not foreground))
            if counted.any():
                assert score == pytest.approx(
                    adjusted_rand_score(t[counted], f[counted]), abs=1e-12
                )
            else:
                assert math.isnan(score)

    def test_hand_worked(self):
        # Pairs together in both: 1 + 1; in the truth: 3 + 3; in the prediction: 1 + 6; of 15.
        score = metrics.ari(ids([1, 1, 1, 2, 2, 2]), ids([5, 5, 7, 7, 7, 7]), foreground=True)
        expected = 6 * 7 / 15
        assert score.item() == pytest.approx((4 - expected) / (6.5 - expected))
        assert score.dtype == torch.float64

    def test_one_object_is_all_or_nothing(self):
        truth = ids([0, 0, 3, 3, 3], [0, 0, 3, 3, 3])
        found = ids([1, 1, 2, 2, 2], [1, 1, 2, 2, 1])
        assert metrics.ari(truth, found, foreground=True).tolist() == [1.0, 0.0]

    @pytest.mark.parametrize(("empty", "expected"), [("one", 1.0), ("skip", math.nan)])
    def test_no_object(self, empty, expected):
        score = metrics.ari(ids([0, 0, VOID_ID]), ids([0, 1, 2]), foreground=True, empty=empty)
        assert score.item() == pytest.approx(expected, nan_ok=True)

    def test_all_void_is_nan_with_the_background_too(self):
        score = metrics.ari(ids([VOID_ID] * 3), ids([0, 1, 2]), foreground=False)
        assert math.isnan(score.item())

    def test_single_pixels_everywhere(self):
        assert metrics.ari(ids([1, 2, 3]), ids([4, 5, 6]), foreground=True).item() == 1.0

    def test_large_clips_do_not_overflow(self):
        truth = torch.arange(24)[:, None].expand(24, 336 * 336).reshape(1, -1) % 2 + 1
        assert metrics.ari(truth, truth, foreground=True).item() == 1.0

    def test_background_may_have_another_id(self):
        truth, found = ids([9, 9, 1, 1]), ids([1, 2, 3, 3])
        assert metrics.ari(truth, found, foreground=True, background=9).item() == 1.0


class TestIds:
    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 2**31), scale=st.sampled_from([1, 997, 2**40]))
    def test_names_of_ids_do_not_matter(self, seed, scale):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randint(0, 5, (2, 3, 8, 8), generator=generator)
        found = torch.randint(0, 4, (2, 3, 8, 8), generator=generator)
        renamed_truth = (truth * scale).where(truth > 0, 0)
        renamed_found = (torch.randperm(4, generator=generator)[found] - 2) * scale
        one = metrics.discovery_metrics(truth, found)
        other = metrics.discovery_metrics(renamed_truth, renamed_found)
        for name in one:
            torch.testing.assert_close(one[name], other[name], equal_nan=True)

    def test_unsigned_ids_of_the_store(self):
        truth = torch.tensor([[0, 40000, 40000, 65535]], dtype=torch.uint16)
        assert metrics.mbo(truth, ids([0, 1, 1, 1])).item() == 1.0

    def test_samples_do_not_touch(self):
        torch.manual_seed(0)
        truth, found = torch.randint(0, 5, (4, 30)), torch.randint(0, 5, (4, 30))
        truth[1] *= 1000
        together = metrics.ari(truth, found, foreground=True)
        alone = [metrics.ari(truth[i : i + 1], found[i : i + 1], foreground=True) for i in range(4)]
        assert together.tolist() == torch.cat(alone).tolist()

    def test_huge_background_id_that_is_absent(self):
        counts = metrics.overlap_counts(
            ids([[5, 2**50]]), ids([[0, 1]]), background=2**45, ignore=None
        )
        assert counts.tolist() == [[[[0, 0], [1, 0], [0, 1]]]]

    def test_counts(self):
        truth = ids([[0, 7, 7], [7, VOID_ID, 9]])
        counts = metrics.overlap_counts(truth, ids([[4, 4, 2], [2, 2, 2]]))
        assert counts.tolist() == [[[[0, 1], [1, 1], [0, 0]], [[0, 0], [1, 0], [1, 0]]]]

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match="expected a prediction of the segmentation's shape"):
            metrics.ari(ids([1, 2]), ids([1]), foreground=True)
        with pytest.raises(ValueError, match="with pixels"):
            metrics.ari(torch.zeros(1, 0), torch.zeros(1, 0), foreground=True)


class TestOverlap:
    truth = ids([0, 0, 0, 0, 1, 1, 2, 2])
    found = ids([0, 0, 0, 1, 1, 1, 1, 1])

    def test_mbo(self):
        # Background 3/4; objects 1 and 2 share a segment of 5 pixels: 2/5 each.
        assert metrics.mbo(self.truth, self.found).item() == pytest.approx(0.4)
        assert metrics.mbo(self.truth, self.found, foreground=False).item() == pytest.approx(
            (0.75 + 0.4 + 0.4) / 3
        )

    def test_miou_gives_a_segment_to_one_object(self):
        # Without the background, the other object gets nothing: segment 0 covers none of it.
        assert metrics.miou(self.truth, self.found).item() == pytest.approx(0.2)
        assert metrics.miou(self.truth, self.found, foreground=False).item() == pytest.approx(
            (0.75 + 0.4) / 3
        )

    def test_the_background_takes_no_segment_from_an_object(self):
        truth, found = ids([0, 0, 0, 0, 1]), ids([3, 3, 3, 3, 3])
        assert metrics.miou(truth, found).item() == pytest.approx(0.2)

    def test_void_counts_in_no_union(self):
        truth, found = ids([1, 1, VOID_ID, VOID_ID, 0]), ids([1, 1, 1, 1, 0])
        assert metrics.mbo(truth, found).item() == 1.0
        assert metrics.mbo(truth, found, ignore=None).item() == pytest.approx((0.5 + 0.5) / 2)

    def test_without_objects_there_is_no_score(self):
        empty = ids([0, 0, VOID_ID])
        assert math.isnan(metrics.mbo(empty, empty).item())
        assert math.isnan(metrics.miou(empty, empty).item())
        assert metrics.mbo(empty, empty, foreground=False).item() == 1.0

    def test_unsplit_background_is_rewarded_only_where_it_counts(self):
        # A tenth of the pixels is an object, found perfectly; the background is in n parts.
        truth = (torch.arange(180) < 18).long()[None]
        for parts, expected in ((1, 1.0), (2, 0.75), (3, 2 / 3)):
            found = torch.where(truth == 1, 99, torch.arange(180)[None] % parts)
            assert metrics.mbo(truth, found).item() == 1.0
            assert metrics.mbo(truth, found, foreground=False).item() == pytest.approx(
                expected, abs=0.01
            )


class TestIdentitySwitches:
    def test_counts_changes_between_frames_in_which_the_object_is_seen(self):
        # Object 1 goes 0 -> 1 -> 1 -> 0: two; object 2 goes 1 -> (unseen) -> 1 -> 2: one.
        truth = ids([1, 2, 0], [1, 0, 0], [1, 2, 0], [1, 2, 0])[None, :, None]
        found = ids([0, 1, 3], [1, 3, 3], [1, 1, 3], [0, 2, 3])[None, :, None]
        found[0, 2, 0, 1] = 1
        assert metrics.identity_switches(truth, found).tolist() == [1.5]

    def test_unseen_frames_forget_nothing(self):
        truth = ids([1, 0], [0, 0], [1, 0])[None, :, None]
        found = ids([4, 5], [5, 5], [6, 5])[None, :, None]
        assert metrics.identity_switches(truth, found).tolist() == [1.0]

    def test_equally_good_segments_are_no_switch(self):
        truth = ids([1, 1, 1, 1], [1, 1, 1, 1])[None, :, None]
        found = ids([0, 0, 1, 1], [1, 1, 1, 0])[None, :, None]
        assert metrics.identity_switches(truth, found).tolist() == [0.0]
        assert metrics.identity_switches(truth, found.flip(1)).tolist() == [0.0]

    def test_without_objects(self):
        empty = torch.zeros(1, 2, 2, 2)
        assert math.isnan(metrics.identity_switches(empty, empty).item())


class TestDiscoveryMetrics:
    def test_a_clip_is_scored_as_one_picture(self):
        torch.manual_seed(1)
        truth, found = torch.randint(0, 4, (2, 5, 6, 6)), torch.randint(0, 4, (2, 5, 6, 6))
        scores = metrics.discovery_metrics(truth, found)
        for name, own in (("fg_ari", metrics.ari), ("mbo_i", metrics.mbo), ("miou", metrics.miou)):
            whole = own(truth.flatten(1), found.flatten(1), foreground=True)
            frames = own(truth.flatten(0, 1), found.flatten(0, 1), foreground=True).view(2, 5)
            torch.testing.assert_close(scores[f"video_{name}"], whole)
            torch.testing.assert_close(scores[name], frames)

    def test_swapped_segments_cost_the_clip_and_not_the_frame(self):
        truth = ids([1, 1, 2, 2], [1, 1, 2, 2])[None, :, None]
        found = ids([0, 0, 1, 1], [1, 1, 0, 0])[None, :, None]
        scores = metrics.discovery_metrics(truth, found)
        assert scores["fg_ari"].tolist() == [[1.0, 1.0]]
        assert scores["video_fg_ari"].item() < 0.1
        assert scores["video_identity_switches"].item() == 1.0

    @pytest.mark.parametrize(
        ("protocol", "fg_ari", "mbo_i", "ari"),
        [
            ("ocrl", math.nan, math.nan, 0.0),
            ("slotcontrast", 1.0, math.nan, 0.0),
            ("dinosaur", 1.0, math.nan, 0.0),
            ("objectcentricbench", math.nan, 0.5, 0.0),
        ],
    )
    def test_a_frame_without_objects(self, protocol, fg_ari, mbo_i, ari):
        truth, found = torch.zeros(1, 1, 1, 4), ids([0, 0, 1, 1])[None, None]
        scores = metrics.discovery_metrics(truth, found, protocol=protocol)
        got = [scores[name].item() for name in ("fg_ari", "mbo_i", "ari")]
        assert got == pytest.approx([fg_ari, mbo_i, ari], nan_ok=True)

    def test_background_counts_in_one_protocol_only(self):
        truth, found = ids([0, 0, 1, 1])[None, None], ids([0, 5, 1, 1])[None, None]
        expected = {"ocrl": 1.0, "slotcontrast": 1.0, "dinosaur": 1.0, "objectcentricbench": 0.75}
        for protocol, value in expected.items():
            scores = metrics.discovery_metrics(truth, found, protocol=protocol)
            assert scores["mbo_i"].item() == scores["miou"].item() == pytest.approx(value)
            assert scores["video_mbo_i"].item() == pytest.approx(value)

    def test_protocols_by_name(self):
        assert metrics.get_protocol("objectcentricbench").size == (256, 256)
        assert metrics.get_protocol("dinosaur").size == (320, 320)
        own = metrics.Protocol("mine", True, "one", None, "attn")
        assert metrics.get_protocol(own) is own
        with pytest.raises(ValueError, match=r"expected a protocol among .*'slotcontrast'"):
            metrics.get_protocol("slot_contrast")

    def test_classes(self):
        truth = ids([0, 7, 8, 9, VOID_ID, 5])[None, None]
        named = metrics.class_segmentation(truth, ids([7, 8, 9, 0])[None], ids([0, 0, 3, 0])[None])
        assert named.tolist() == [[[[0, 1, 1, 4, VOID_ID, VOID_ID]]]]
        found = ids([0, 1, 1, 2, 2, 2])[None, None]
        scores = metrics.discovery_metrics(truth, found, classes=named)
        assert scores["mbo_c"].item() == scores["video_mbo_c"].item() == 1.0
        assert scores["mbo_i"].item() < 1.0

    def test_summary_leaves_out_what_has_no_value(self):
        means = metrics.summarize(
            {"a": torch.tensor([1.0, math.nan]), "b": torch.tensor([math.nan])}
        )
        assert means["a"] == 1.0
        assert math.isnan(means["b"])


def reference_ssim(x, y):
    """One channel, window by window."""
    offset = np.arange(-5, 6)
    window = np.exp(-(offset**2) / 4.5)
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + 1e-4)
                * (2 * cov + 9e-4)
                / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
            )
    return np.mean(values)


class TestPictures:
    def test_psnr(self):
        black = torch.zeros(2, 3, 4, 4)
        assert metrics.psnr(black + 0.1, black).tolist() == pytest.approx([20.0, 20.0])
        assert metrics.psnr(black, black).tolist() == pytest.approx([100.0, 100.0])

    def test_ssim_equals_the_definition(self):
        rng = np.random.default_rng(0)
        x, y = rng.random((2, 2, 14, 13))
        y = 0.6 * x + 0.4 * y
        got = metrics.ssim(torch.from_numpy(x), torch.from_numpy(y)).item()
        expected = np.mean([reference_ssim(a, b) for a, b in zip(x, y, strict=True)])
        assert got == pytest.approx(expected, rel=1e-9)

    def test_ssim_of_equal_pictures_and_of_small_ones(self):
        picture = torch.rand(2, 5, 3, 16, 16)
        assert metrics.ssim(picture, picture).flatten().tolist() == pytest.approx([1.0] * 10)
        with pytest.raises(ValueError, match="11 x 11"):
            metrics.ssim(picture[..., :8], picture[..., :8])


def test_feature_distance_by_hand() -> None:
    features = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    others = torch.tensor([[[6.0, 8.0], [0.0, 2.0]]])
    # The first place is the same direction; the second is at right angles: 2, so 1 on average.
    assert metrics.feature_distance(features, others).tolist() == pytest.approx([1.0])
    assert metrics.feature_distance(features, -features).tolist() == pytest.approx([4.0])


def test_roc_auc_by_hand() -> None:
    scores = torch.tensor([0.9, 0.8, 0.8, 0.1])
    is_positive = torch.tensor([True, False, True, False])
    # Of the four pairs three are right and one is a tie.
    assert metrics.roc_auc(scores, is_positive) == pytest.approx(3.5 / 4)
    assert metrics.roc_auc(-scores, is_positive) == pytest.approx(0.5 / 4)
    assert math.isnan(metrics.roc_auc(scores, torch.zeros(4, dtype=torch.bool)))


def test_retrieval_ranks_by_hand() -> None:
    distances = torch.tensor([[0.1, 0.5, 0.2], [0.3, 0.4, 0.4], [0.0, 0.1, 0.9]])
    assert metrics.retrieval_ranks(distances).tolist() == [1, 2.5, 3]


def centred(places, *, size=16):
    """Ids (1,T,H,W): object n + 1 is a square of three pixels around its places (row, column)."""
    ids = torch.zeros(1, len(places), size, size, dtype=torch.int64)
    for t, frame in enumerate(places):
        for n, (row, column) in enumerate(frame):
            ids[0, t, row - 1 : row + 2, column - 1 : column + 2] = n + 1
    return ids


def test_centres_are_those_of_the_pixels_in_the_order_of_the_table():
    ids = centred([[(3, 4), (9, 2)], [(3, 5), (9, 2)]])
    ids[ids == 2] = 7
    found = metrics.centres(ids, background=0)
    assert found.dtype == torch.float64 and found.shape == (1, 2, 3, 2)
    torch.testing.assert_close(
        found[0, :, 1:], torch.tensor([[[3, 4], [9, 2]], [[3, 5], [9, 2]]]).double()
    )
    ids[0, 1][ids[0, 1] == 7] = 0
    gone = metrics.centres(ids, background=0)[0, 1, 2]
    assert gone.isnan().all()
    # Without a background ids are numbered as the columns of a table of counts.
    counts = metrics.overlap_counts(ids, ids + 3)
    columns = metrics.centres(ids + 3)
    torch.testing.assert_close(
        columns[0, 0, counts[0, 0, 1].argmax()], torch.tensor([3.0, 4.0]).double()
    )


def test_motion_from_rest_is_of_what_rested_in_the_context():
    # One object is pushed by two pixels a step, one moves by itself, one rests.
    came = centred(
        [[(3, 3), (9, 2), (13, 13)], [(3, 3), (9, 3), (13, 13)]]
        + [[(3, 3 + 2 * t), (9, 3 + t), (13, 13)] for t in (1, 2)]
    )
    slots = torch.tensor([5, 1, 3, 4])

    def score(said):
        parts = metrics.motion_from_rest(came, slots[said], num_context=2, horizons=(1, 2))
        return [part[0].tolist() for part in parts]

    assert score(came[:, 1:]) == [[0, 0], [4, 16]]
    assert score(came[:, 1:2].expand(-1, 3, -1, -1)) == [[4, 16], [4, 16]]
    # Half of the way for what was pushed, and a pixel for what rests; the other one does not count.
    said = centred([[(3, 3), (9, 3), (13, 13)]] + [[(3, 3 + t), (5, 9), (12, 13)] for t in (1, 2)])
    assert score(said) == [[1 + 1, 4 + 1], [4, 16]]
    # What is hidden is not counted, and a segment that is gone went nowhere.
    said[0, 2][said[0, 2] == 1] = 0
    assert score(said) == [[2, 16 + 1], [4, 16]]
    came[0, 3][came[0, 3] == 1] = 0
    assert score(said) == [[2, 1], [4, 0]]
    # What is void is no object.
    came[came == 3] = metrics.VOID_ID
    assert score(said) == [[1, 0], [4, 0]]


def test_with_one_frame_of_context_all_objects_rest():
    came = centred([[(3, 3)], [(3, 5)]])
    errors, ways = metrics.motion_from_rest(came, came, num_context=1, horizons=(1,))
    assert errors.tolist() == [[0]] and ways.tolist() == [[4]]
