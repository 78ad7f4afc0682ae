import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from ocrl.envs.registry import make
from ocrl.envs.scenes_camera import project
from ocrl.envs.scenes_geometry import SHAPES
from ocrl.envs.scenes_render import COLORS, MATERIALS
from ocrl.envs.scenes_sampler import SPLITS

NAMES = ("scenes", "scenes_multiview")
CONTROLS = {"none": {}, "camera": {"camera_speed": 5.0}, "object": {}}


def small(name="scenes", **arguments):
    return make(name, **({"size": 32, "supersampling": 1} | arguments))


def play(env, seed, num_steps=6):
    env.action_space.seed(seed)
    trace = [env.reset(seed=seed)[0]]
    for _ in range(num_steps):
        frame, *_ = env.step(env.action_space.sample())
        objects = env.objects()
        trace += [
            frame,
            env.segmentation(),
            env.depth(),
            *(objects[n] for n in objects.dtype.names),
        ]
    return trace


def centers(env):
    """Places of the objects on the ground, by id, where all are seen."""
    table = env.objects()
    return table["attributes"][:, 5:7].astype(float)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("name", NAMES)
def test_gymnasium_accepts_it(name, control):
    env = small(name, control=control, **CONTROLS[control])
    check_env(env, skip_render_check=True)


def test_gymnasium_knows_the_names():
    env = gymnasium.make("ocrl/Scenes-v0", size=24)
    assert env.reset(seed=0)[0].shape == (24, 24, 3)
    several = gymnasium.make("ocrl/ScenesMultiview-v0", size=24, num_views=2)
    assert several.reset(seed=0)[0].shape == (2, 24, 24, 3)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_episode(name):
    env = small(name, camera_speed=3.0)
    first, again, other = play(env, 3), play(small(name, camera_speed=3.0), 3), play(env, 4)
    assert len(first) == len(again)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert all(np.array_equal(a, b) for a, b in zip(first, play(env, 3), strict=True))


def test_masks_tables_and_the_player_do_not_change_the_episode():
    plain, curious = small(), small()
    plain.reset(seed=5)
    curious.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(8):
        curious.scripted_action(rng)
        curious.objects()
        curious.extras()
        assert np.array_equal(curious.segmentation(), curious.segmentation("scene"))
        for taken in (curious.segmentation(), curious.depth(), curious.intrinsics()):
            taken[:] = 7
        curious.render()[:] = 9
        assert np.array_equal(plain.step(0)[0], curious.step(0)[0])
    assert np.array_equal(plain.segmentation(), curious.segmentation())


@pytest.mark.parametrize("name", NAMES)
def test_objects_and_masks_agree(name):
    env = small(name, size=48)
    for seed in range(6):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(0)
        ids, table = env.segmentation().reshape(-1, 48, 48), env.objects()
        assert ids.dtype == np.uint16 and len(table) <= env.max_objects
        assert list(table["id"]) == sorted(set(np.unique(ids)) - {0})
        points = env.points().reshape(-1, 48, 48, 3)
        for row in table:
            boxes, positions = row["box"].reshape(-1, 4), row["position"].reshape(-1, 2)
            names = [SHAPES, tuple(COLORS), MATERIALS]
            assert all(0 <= row["attributes"][i] < len(names[i]) for i in range(3))
            assert row["category"] == row["attributes"][0]
            radius = row["attributes"][4]
            assert radius == np.float32([0.7, 0.35][int(row["attributes"][3])])
            for view in range(len(ids)):
                rows, columns = np.nonzero(ids[view] == row["id"])
                if not len(rows):
                    assert np.all(boxes[view] == -1.0)
                    continue
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.allclose(boxes[view] * 48, box)
                seen, _ = project(
                    row["attributes"][None, 5:8], env.intrinsics()[view], env.extrinsics()[view]
                )
                assert np.allclose(positions[view] * 48, seen[0], atol=1e-3)
                surface = points[view][ids[view] == row["id"]] - row["attributes"][5:8]
                assert np.linalg.norm(surface, axis=1).max() <= radius * np.sqrt(2) + 1e-4


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), views=st.sampled_from([None, 1, 2]))
def test_every_object_is_seen_at_first_and_none_overlaps(seed, count, views):
    env = small(num_objects=count, num_views=views, min_visible=0.004, speed=0.3)
    env.reset(seed=seed)
    ids = env.segmentation().reshape(-1, 32 * 32)
    for view in ids:
        assert np.all(np.bincount(view, minlength=count + 1)[1 : count + 1] >= 0.004 * 32 * 32)
    table = env.objects()
    assert list(table["id"]) == list(range(1, count + 1))
    radii, gap = table["attributes"][:, 4].astype(float), 0.15
    for _ in range(10):
        places = env.objects()["attributes"][:, 5:7].astype(float)
        if len(places) == count:
            away = np.linalg.norm(places[:, None] - places[None], axis=-1)
            gaps = (away - radii[:, None] - radii)[~np.eye(count, dtype=bool)]
            assert np.all(gaps > gap - 1e-5)
            assert np.all(np.linalg.norm(places, axis=1) + radii < 3.1 + 1e-5)
        gap = 0.0
        env.step(0)


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_behind_the_pixels_of_their_camera(name):
    env = small(name)
    env.reset(seed=2)
    depth = env.depth().reshape(-1, 32, 32)
    points = env.points().reshape(-1, 32 * 32, 3)
    row, column = np.mgrid[:32, :32] + 0.5
    for view, intrinsics in enumerate(env.intrinsics()):
        pixels, depths = project(points[view], intrinsics, env.extrinsics()[view])
        assert np.allclose(pixels, np.stack([column, row], -1).reshape(-1, 2), atol=1e-3)
        assert np.allclose(depths, depth[view].ravel(), rtol=1e-5)
    ground = points[env.segmentation().reshape(-1, 32 * 32) == 0]
    near = ground[np.linalg.norm(ground, axis=1) < 50.0]
    assert len(near) > 500 and np.abs(near[:, 2]).max() < 1e-3


def test_views_of_a_scene_agree():
    env = make("scenes_multiview", size=64, num_objects=5)
    num_common = 0
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(3):
            env.step(0)
        ids, depth, points = env.segmentation(), env.depth(), env.points()
        for here, there in ((0, 1), (1, 2), (2, 0)):
            pixels, depths = project(
                points[here].reshape(-1, 3), env.intrinsics()[there], env.extrinsics()[there]
            )
            column, row = np.floor(pixels).astype(int).T
            is_inside = (depths > 0) & (column >= 0) & (column < 64) & (row >= 0) & (row < 64)
            label, column, row = ids[here].ravel()[is_inside], column[is_inside], row[is_inside]
            depths = depths[is_inside]
            # The point is seen there, or something nearer is; pixels at edges may look past it.
            window = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            near = [(np.clip(row + dy, 0, 63), np.clip(column + dx, 0, 63)) for dy, dx in window]
            is_same = np.any([ids[there][place] == label for place in near], axis=0)
            is_hidden = np.any([depth[there][place] < depths - 0.02 for place in near], axis=0)
            assert np.all(is_same | is_hidden)
            is_open = ids[there][row, column] == label
            agree = is_open & (np.abs(depth[there][row, column] - depths) < 0.2) & (label > 0)
            num_common += agree.sum()
    assert num_common > 300


def test_an_object_that_only_one_view_sees_has_no_box_in_the_other():
    env = small("scenes_multiview", num_views=2, num_objects=6, speed=0.3)
    num_hidden = 0
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(12):
            env.step(0)
            ids, table = env.segmentation(), env.objects()
            for row in table:
                is_seen = [(view == row["id"]).any() for view in ids]
                assert np.array_equal((row["box"] == -1).all(-1), np.invert(is_seen))
                num_hidden += not all(is_seen)
    assert num_hidden > 0


def test_views_share_the_range_of_directions():
    env = small("scenes_multiview", num_views=4, camera_azimuth=[0.0, 360.0])
    for seed in range(10):
        env.reset(seed=seed)
        place = env.extrinsics()[:, :3, 3]
        azimuth = np.degrees(np.arctan2(place[:, 1], place[:, 0])) % 360.0
        assert (azimuth // 90.0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("speed", "camera_speed"), [(0.0, 0.0), (0.2, 0.0), (0.0, 4.0)])
def test_what_is_to_move_moves(speed, camera_speed):
    env = small(speed=speed, spin=0.0, camera_speed=camera_speed, num_objects=3)
    first, _ = env.reset(seed=1)
    places, poses = centers(env), env.extrinsics()
    last, *_ = env.step(0)
    moved = np.linalg.norm(centers(env) - places, axis=1)
    assert np.all((moved > 0.05) == (speed > 0)) and np.all(moved <= 1.5 * speed + 1e-6)
    assert np.allclose(env.extrinsics(), poses) == (camera_speed == 0)
    assert np.array_equal(first, last) == (speed == camera_speed == 0)


def test_an_orbit_keeps_its_distance_height_and_pace():
    env = small(camera_speed=5.0)
    env.reset(seed=0)
    places = []
    for _ in range(4):
        places.append(env.extrinsics()[0, :3, 3])
        env.step(0)
    places = np.array(places)
    assert np.ptp(places[:, 2]) < 1e-9 and np.ptp(np.linalg.norm(places, axis=1)) < 1e-9
    turns = np.diff(np.unwrap(np.arctan2(places[:, 1], places[:, 0])))
    assert np.ptp(turns) < 1e-9 and 2.5 <= abs(np.degrees(turns[0])) <= 7.5


@pytest.mark.parametrize(("action", "turn", "rise"), [(0, 0, 0), (1, -1, 0), (2, 1, 0), (3, 0, 1)])
def test_actions_move_the_camera(action, turn, rise):
    env = small(control="camera", camera_speed=2.0)
    env.reset(seed=0)
    before = env.extrinsics()[0]
    env.step(action)
    after = env.extrinsics()[0]
    moved = before[:3, :3].T @ (after[:3, 3] - before[:3, 3])
    assert np.sign(np.round(moved[0], 6)) == turn
    assert np.sign(np.round(after[2, 3] - before[2, 3], 6)) == rise


def test_the_camera_stays_above_the_ground_and_below_the_zenith():
    env = small(control="camera", camera_speed=20.0, num_objects=1)
    for action, height in ((4, np.sin(np.radians(5))), (3, np.sin(np.radians(85)))):
        env.reset(seed=0)
        for _ in range(10):
            env.step(action)
        pose = env.extrinsics()[0]
        assert -pose[2, 2] == pytest.approx(height)


@pytest.mark.parametrize(("action", "way"), [(1, [-1, 0]), (2, [1, 0]), (3, [0, 1]), (4, [0, -1])])
def test_actions_move_the_first_object_as_the_camera_sees_it(action, way):
    env = small(control="object", speed=0.2, num_objects=1)
    env.reset(seed=0)
    before, pose = centers(env)[0], env.extrinsics()[0]
    env.step(action)
    moved = centers(env)[0] - before
    assert np.linalg.norm(moved) == pytest.approx(0.2, abs=1e-5)
    ahead = pose[:2, 2] / np.linalg.norm(pose[:2, 2])
    assert np.allclose([moved @ pose[:2, 0], moved @ ahead], 0.2 * np.array(way), atol=1e-5)
    before = centers(env)[0]
    env.step(0)
    assert np.allclose(centers(env)[0], before)


def test_the_player_wanders_by_its_generator_alone():
    env = small(control="camera", camera_speed=2.0)
    env.reset(seed=0)

    def actions(seed):
        rng = np.random.default_rng(seed)
        env.reset(seed=0)
        return [env.scripted_action(rng) for _ in range(200)]

    assert actions(1) == actions(1) != actions(2)
    assert set(actions(1)) == set(range(5))
    assert sum(a == b for a, b in zip(actions(1), actions(1)[1:], strict=False)) > 140


def test_episodes_end_by_time_only():
    env = small(max_steps=3)
    env.reset(seed=0)
    assert [env.step(0)[1:4] for _ in range(3)] == [(0.0, False, False)] * 2 + [(0.0, False, True)]


def test_every_property_turns_up():
    env = small(num_objects=6)
    seen = []
    for seed in range(40):
        env.reset(seed=seed)
        seen.append(env.objects()["attributes"][:, :4])
    for column, count in enumerate((3, 8, 2, 2)):
        assert set(np.concatenate(seen)[:, column]) == set(range(count))


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_combinations_stay_in_their_split(split):
    held_out = [["cube", "red"], ["sphere", "metal", "small"], ["brown"]]
    env = small(held_out=held_out, split=split, size=16, min_visible=0.0)
    found = []
    for seed in range(60):
        env.reset(seed=seed)
        looks = [
            (SHAPES[int(s)], tuple(COLORS)[int(c)], MATERIALS[int(m)], ("large", "small")[int(k)])
            for s, c, m, k in env.objects()["attributes"][:, :4]
        ]
        found.append(any(set(names) <= set(look) for look in looks for names in held_out))
    assert {"train": not any(found), "held_out": all(found), "all": 0 < sum(found) < 60}[split]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shapes": ["cubes"]}, "unknown shape 'cubes'.*did you mean 'cube'"),
        ({"colors": ["gren"]}, "did you mean 'green'"),
        ({"materials": ["rubbr"]}, "did you mean 'rubber'"),
        ({"shapes": []}, "at least one shape"),
        ({"object_sizes": {}}, "at least one size"),
        ({"object_sizes": {"none": 0.0}}, "sizes above 0"),
        ({"split": "trian"}, "did you mean 'train'"),
        ({"control": "camra"}, "did you mean 'camera'"),
        ({"control": "camera"}, "expected camera_speed above 0, got 0"),
        ({"control": "object", "speed": 0.0}, "expected speed above 0, got 0"),
        ({"held_out": [["cube", "rad"]]}, "unknown name in held_out 'rad'.*did you mean 'red'"),
        ({"held_out": ["cube"]}, r"expected lists of names such as \[cube, red\], got 'cube'"),
        ({"held_out": [["cube", "sphere"]]}, "one shape in .*which no object has together"),
        ({"held_out": [["cube"], ["sphere"], ["cylinder"]]}, "got all of them held out"),
        ({"split": "held_out"}, "expected held_out to name looks"),
        ({"num_objects": [3, 2]}, "num_objects"),
        ({"num_objects": 0}, "num_objects"),
        ({"num_objects": 100}, "expected objects that fit into arena 3.1, got 100"),
        ({"arena": 0.3}, "expected objects that fit into arena 0.3"),
        ({"num_views": 0}, "num_views of at least 1, or null, got 0"),
        ({"size": 0}, "size and supersampling of at least 1, got 0"),
        ({"supersampling": 0}, "size and supersampling of at least 1"),
        ({"field_of_view": 180.0}, "field_of_view between 0 and 120, got 180"),
        ({"camera_distance": [2.0, 11.0]}, r"camera_distance: expected \[least, most\] within"),
        ({"camera_elevation": [30.0, 20.0]}, r"camera_elevation: expected .*got \[30.0, 20.0\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("scenes", **arguments)


def test_objects_that_find_no_room_or_are_not_seen_are_refused():
    crowd = small(num_objects=12, object_sizes={"large": 0.8}, min_visible=0.0)
    with pytest.raises(ValueError, match=r"12 objects each find room in arena 3.1.*take fewer"):
        crowd.reset(seed=0)
    hidden = small(num_objects=4, min_visible=0.2)
    with pytest.raises(ValueError, match=r"4 objects each have min_visible=0.2.*take fewer"):
        hidden.reset(seed=0)


@pytest.mark.parametrize("action", [1, -1, 0.5])
def test_an_action_outside_the_space_is_refused(action):
    env = small()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected an action in Discrete"):
        env.step(action)


def test_an_unknown_preset_is_refused():
    env = small()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="did you mean 'entities'"):
        env.segmentation("entity")


def test_the_rendered_picture_shows_views_side_by_side():
    env = small("scenes_multiview")
    frames, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), np.hstack(list(frames)))
