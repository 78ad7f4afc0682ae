"""AP against a plain loop over predictions, and on cases worked by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.average_precision import DISTANCES, PredictedSets, average_precision


def plain_loop(sets, distance):
    """The protocol as it is told: one prediction after the other."""
    presence = sets.presence.numpy()
    places = [(i, k) for i in range(presence.shape[0]) for k in range(presence.shape[1])]
    places.sort(key=lambda place: -presence[place])  # Python's sort is stable
    used, hits = set(), []
    for i, k in places:
        best, found = math.inf, None
        for m in range(sets.is_object.shape[1]):
            if not sets.is_object[i, m] or (sets.classes[i, k] != sets.true_classes[i, m]).any():
                continue
            away = float(
                np.linalg.norm(
                    sets.coordinates[i, k].double() - sets.true_coordinates[i, m].double()
                )
            )
            if away < best:
                best, found = away, m
        is_near = found is not None and (math.isinf(distance) or best < distance)
        hits.append(is_near and (i, found) not in used)
        if hits[-1]:
            used.add((i, found))
    total = int(sets.is_object.sum())
    if total == 0:
        return math.nan
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    area, last = 0.0, 0.0
    for index in range(len(hits)):
        area += (recall[index] - last) * precision[index:].max()
        last = recall[index]
    return area


def random_sets(seed, num_frames, num_slots, num_rows, num_levels):
    generator = torch.Generator().manual_seed(seed)

    def whole(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    return PredictedSets(
        presence=whole(num_levels, num_frames, num_slots).float() / num_levels,
        classes=whole(2, num_frames, num_slots, 2),
        coordinates=torch.rand(num_frames, num_slots, 2, generator=generator),
        is_object=whole(3, num_frames, num_rows) > 0,
        true_classes=whole(2, num_frames, num_rows, 2),
        true_coordinates=torch.rand(num_frames, num_rows, 2, generator=generator),
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 9),
)
def test_it_equals_a_plain_loop_with_ties_too(seed, num_frames, num_slots, num_rows, num_levels):
    sets = random_sets(seed, num_frames, num_slots, num_rows, num_levels)
    for distance, value in average_precision(sets).items():
        assert value == pytest.approx(plain_loop(sets, distance), abs=1e-12, nan_ok=True)


def line(presence, places, truth, *, classes=None):
    """One frame of objects on a line, all of one class unless said."""
    num = len(presence)
    return PredictedSets(
        presence=torch.tensor([presence]),
        classes=torch.tensor([classes or [0] * num])[..., None],
        coordinates=torch.tensor([places])[..., None],
        is_object=torch.ones(1, len(truth), dtype=torch.bool),
        true_classes=torch.zeros(1, len(truth), 1, dtype=torch.int64),
        true_coordinates=torch.tensor([truth])[..., None],
    )


def test_a_second_hit_on_the_nearest_object_is_wrong_though_another_is_free():
    # Both are nearest to 0.0; the second does not turn to 0.3. Precision 1, then 1/2: area 1/2.
    sets = line([0.9, 0.8], [0.0, 0.1], [0.0, 0.3])
    assert average_precision(sets, distances=[1.0]) == {1.0: 0.5}


def test_hits_and_misses_by_hand():
    # Sorted: hit, wrong class, hit, hit of three objects: precision 1, 1/2, 2/3, 3/4; the envelope
    # at the hits is 1, 3/4, 3/4.
    sets = line([0.9, 0.8, 0.7, 0.6], [0.0, 5.0, 5.0, 9.0], [0.0, 5.0, 9.0], classes=[0, 1, 0, 0])
    assert average_precision(sets)[math.inf] == pytest.approx((1 + 0.75 + 0.75) / 3)


def test_a_distance_is_strict():
    values = average_precision(line([0.5], [0.5], [0.0]), distances=DISTANCES)
    assert [values[d] for d in DISTANCES] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_equal_presence_keeps_the_order_of_slots():
    right_first = line([0.5, 0.5], [0.0, 9.0], [0.0])
    wrong_first = line([0.5, 0.5], [9.0, 0.0], [0.0])
    assert average_precision(right_first, distances=[1.0])[1.0] == 1.0
    assert average_precision(wrong_first, distances=[1.0])[1.0] == 0.5


def test_frames_are_pooled_and_not_averaged():
    one, other = line([0.9], [0.0], [0.0]), line([0.95], [9.0], [0.0])
    both = PredictedSets(
        **{name: torch.cat([value, getattr(other, name)]) for name, value in vars(one).items()}
    )
    # The wrong one is surer: precision 0, 1/2; one of two objects found. By frame it would be 1/2.
    assert average_precision(both, distances=[1.0])[1.0] == 0.25


def test_without_objects_there_is_no_value():
    sets = line([0.5], [0.5], [0.0])
    empty = PredictedSets(**{**vars(sets), "is_object": torch.zeros(1, 1, dtype=torch.bool)})
    assert all(math.isnan(value) for value in average_precision(empty).values())


def test_what_can_not_be_sorted_or_does_not_fit_is_refused():
    sets = line([0.5], [0.5], [0.0])
    with pytest.raises(ValueError, match="finite presence"):
        PredictedSets(**{**vars(sets), "presence": torch.tensor([[math.nan]])})
    with pytest.raises(ValueError, match="as many frames"):
        PredictedSets(**{**vars(sets), "presence": torch.zeros(2, 1)})
