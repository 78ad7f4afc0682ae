"""Folders of posed scenes, drawn small by our own ray caster and written in others' layouts."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ocrl.data.clips import evaluation_clips
from ocrl.data.posed import camera_of_rays, import_posed
from ocrl.data.store import EpisodeStore, EpisodeWriter
from ocrl.envs.scenes3d_geometry import solid_rows
from ocrl.envs.scenes3d_render import RayCaster
from ocrl.envs.scenes3d_rooms import ROOMS
from ocrl.envs.scenes3d_stage import Stage
from ocrl.envs.scenes_camera import look_at
from ocrl.envs.scenes_geometry import body_table
from ocrl.envs.scenes_render import LIGHTS
from ocrl.nn.rays import camera_rays, check_cameras, distance_of, project

ROOT = Path(__file__).parents[3]
SIZE = 32
FOCAL = {"clevr3d": 0.035 / 0.032, "uorf": 350 / 320, "msn": 1.3}
"""Over the width."""


def drawn(layout, num_scenes=2, num_views=3):
    """Frames, ids and cameras of scenes that look at the origin."""
    rng = np.random.default_rng(0)
    for _ in range(num_scenes):
        places = rng.uniform(-0.5, 0.5, (2, 2)) + np.array([[-1.0, 0.0], [1.0, 0.0]])
        table = body_table(
            np.array([0, 1]), np.full(2, 0.8), places, np.zeros(2), rng.random((2, 3)), np.zeros(2)
        )
        poses = [
            look_at(120.0 * i + rng.uniform(0, 60), rng.uniform(25, 50), 9.0, np.zeros(3))
            for i in range(num_views)
        ]
        focal = FOCAL[layout] * SIZE
        focal_y = 350 / 240 * SIZE if layout == "uorf" else focal
        intrinsics = np.array([[focal, 0, SIZE / 2], [0, focal_y, SIZE / 2], [0, 0, 1]])
        views, kinds = len(poses), frozenset([0, 1])
        stage = Stage(
            rows=torch.tensor(solid_rows(table)).float().expand(views, -1, -1),
            kinds=kinds,
            lights=torch.tensor(LIGHTS).float().expand(views, -1, -1),
            rooms=[ROOMS["studio"]] * views,
            intrinsics=torch.tensor(intrinsics).float().expand(views, 3, 3),
            extrinsics=torch.tensor(np.stack(poses)).float(),
        )
        picture = RayCaster(size=SIZE, supersampling=1, device="cpu").draw(stage)
        yield picture, stage


def write_clevr3d(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    scenes = list(drawn("clevr3d"))
    for scene, (picture, _) in enumerate(scenes):
        for view, (frame, ids) in enumerate(zip(picture.frames, picture.ids, strict=True)):
            Image.fromarray(frame.numpy()).save(folder / "images" / f"img_{scene}_{view}.png")
            mask = Image.fromarray(ids.numpy().astype(np.uint8))
            mask.save(folder / "masks" / f"masks_{scene}_{view}.png")
    places = np.stack([stage.extrinsics[:, :3, 3].numpy() for _, stage in scenes])
    np.savez(folder / "metadata.npz", camera_pos=places, shape=np.ones((2, 6)))
    return scenes


def write_uorf(folder):
    folder.mkdir(parents=True)
    scenes = list(drawn("uorf"))
    levels = np.array([100, 40, 200], np.uint8)
    for scene, (picture, stage) in enumerate(scenes):
        for view, (frame, ids) in enumerate(zip(picture.frames, picture.ids, strict=True)):
            stem = f"{view:05d}_sc{scene:04d}_az{view:02d}_el00"
            Image.fromarray(frame.numpy()).save(folder / f"{stem}.png")
            Image.fromarray(levels[ids.numpy()]).convert("RGB").save(folder / f"{stem}_mask.png")
            Image.fromarray(frame.numpy()).save(folder / f"{stem}_moved.png")
            np.savetxt(folder / f"{stem}_RT.txt", stage.extrinsics[view].numpy())
            np.savetxt(folder / f"{stem}_azi_rot.txt", np.eye(3))
    return scenes


def write_msn(folder):
    folder.mkdir(parents=True)
    scenes = list(drawn("msn"))
    for scene, (picture, stage) in enumerate(scenes):
        rays = camera_rays(stage.intrinsics, stage.extrinsics, size=(SIZE, SIZE))
        np.savez(
            folder / f"scene_{scene}.npz",
            color_image=picture.frames.numpy(),
            ray_origins=rays[0].numpy(),
            ray_directions=rays[1].numpy() * 2.5,
            instance_image=(picture.ids.numpy() + (picture.ids.numpy() > 0))[..., None],
        )
    return scenes


WRITERS = {"clevr3d": write_clevr3d, "uorf": write_uorf, "msn": write_msn}


def read(folder, path, layout, image_size=None, num_views=None):
    return import_posed(folder, path, layout=layout, image_size=image_size, num_views=num_views)


@pytest.mark.parametrize("layout", WRITERS)
def test_scenes_come_back_with_their_cameras(tmp_path, layout):
    scenes = WRITERS[layout](tmp_path / "in")
    store = read(tmp_path / "in", tmp_path / "out", layout)
    assert len(store) == len(scenes) and store.metadata["source"] == layout
    for index, (picture, stage) in enumerate(scenes):
        episode = store.episode(index)
        assert np.array_equal(episode["frames"][0], picture.frames.numpy())
        np.testing.assert_allclose(episode["extrinsics"][0], stage.extrinsics, atol=1e-4)
        np.testing.assert_allclose(episode["intrinsics"][0], stage.intrinsics, atol=2e-3)
        ids, expected = episode["segmentation/entities"][0], picture.ids.numpy()
        if layout == "uorf":
            # Grey levels in their order: the lowest is 1, the second lowest the background.
            expected = np.array([0, 1, 2], np.uint16)[expected]
        assert np.array_equal(ids, expected) and len(np.unique(ids)) == 3
    clip = next(
        evaluation_clips(store, clip_length=1, num_clips=1, split="all", segmentation=["entities"])
    )
    assert clip.video.shape == (1, 1, 3, 3, SIZE, SIZE)
    check_cameras(clip.camera.intrinsics, clip.camera.extrinsics, num_views=clip.num_views)


@pytest.mark.parametrize("layout", WRITERS)
def test_pictures_of_another_size_keep_their_rays(tmp_path, layout):
    scenes = WRITERS[layout](tmp_path / "in")
    store = read(tmp_path / "in", tmp_path / "out", layout, image_size=(16, 48), num_views=2)
    episode, (_, stage) = store.episode(0), scenes[0]
    assert episode["frames"].shape == (1, 2, 16, 48, 3)
    assert set(np.unique(episode["segmentation/entities"])) <= {0, 1, 2}
    points = stage.extrinsics[:, None, :3, 3] * 0.1
    cameras = stage.intrinsics[:2], stage.extrinsics[:2]
    there, _ = project(points[:2], intrinsics=cameras[0], extrinsics=cameras[1])
    stored = (torch.tensor(episode[name][0]) for name in ("intrinsics", "extrinsics"))
    intrinsics, extrinsics = stored
    here, _ = project(points[:2], intrinsics=intrinsics, extrinsics=extrinsics)
    torch.testing.assert_close(here, there * torch.tensor([1.5, 0.5]), atol=2e-2, rtol=0)


def test_what_one_view_shows_is_seen_in_another_through_stored_cameras(tmp_path):
    (picture, _), *_ = write_msn(tmp_path / "in")
    episode = read(tmp_path / "in", tmp_path / "out", "msn").episode(0)
    intrinsics, extrinsics = (
        torch.tensor(episode[name][0]) for name in ("intrinsics", "extrinsics")
    )
    origins, ways = camera_rays(intrinsics, extrinsics, size=(SIZE, SIZE))
    points = origins + distance_of(picture.depth, intrinsics=intrinsics)[..., None] * ways
    mine = points[0][picture.ids[0] > 0]
    places, depths = project(mine, intrinsics=intrinsics[1], extrinsics=extrinsics[1])
    column, row = places.floor().long().clamp(0, SIZE - 1).T
    is_open = (picture.depth[1][row, column] - depths).abs() < 0.3
    agrees = picture.ids[1][row, column][is_open] == picture.ids[0][picture.ids[0] > 0][is_open]
    assert is_open.sum() > 10 and agrees.float().mean() > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_is_found_from_its_rays(seed):
    rng = np.random.default_rng(seed)
    pose = look_at(rng.uniform(-180, 180), rng.uniform(5, 80), 7.0, rng.normal(size=3))
    matrix = np.array([[40.0, 0.7, 15.0], [0.0, 55.0, 9.0], [0.0, 0.0, 1.0]])
    rays = camera_rays(torch.tensor(matrix), torch.tensor(pose), size=(20, 30))
    lengths = rng.uniform(0.5, 3.0, (20, 30, 1))
    intrinsics, extrinsics = camera_of_rays(rays[0].numpy(), rays[1].numpy() * lengths)
    np.testing.assert_allclose(intrinsics, matrix, atol=1e-4)
    np.testing.assert_allclose(extrinsics, pose, atol=1e-5)


def test_rays_of_no_pinhole_are_refused():
    grid = np.moveaxis(np.mgrid[:8, :8], 0, -1) / 8.0 - 0.5
    bent = np.concatenate([np.sin(3 * grid), np.cos(3 * grid).prod(-1, keepdims=True)], -1)
    with pytest.raises(ValueError, match="rays of a pinhole camera in an image, got directions"):
        camera_of_rays(np.zeros((8, 8, 3)), bent)
    with pytest.raises(ValueError, match="rays from one place in view 3, got origins that differ"):
        camera_of_rays(np.random.default_rng(0).random((8, 8, 3)), bent, what="view 3")


def without_metadata(folder):
    (folder / "metadata.npz").unlink()


def without_view(folder):
    (folder / "images" / "img_1_2.png").unlink()


def without_positions(folder):
    np.savez(folder / "metadata.npz", shape=np.ones(2))


def with_one_scene(folder):
    np.savez(folder / "metadata.npz", camera_pos=np.ones((1, 3, 3)))


def without_pose(folder):
    next(folder.glob("*sc0001*_RT.txt")).unlink()


def with_scaled_pose(folder):
    file = next(folder.glob("*_RT.txt"))
    np.savetxt(file, np.diag([2.0, 2.0, 2.0, 1.0]))


def with_short_pose(folder):
    np.savetxt(next(folder.glob("*_RT.txt")), np.eye(3))


def with_fewer_views(folder):
    for file in folder.glob("00002_sc0001*"):
        file.unlink()


def without_rays(folder):
    np.savez(folder / "scene_0.npz", color_image=np.zeros((3, 4, 4, 3), np.uint8))


def with_cut_off_metadata(folder):
    cut_off(folder / "metadata.npz")


def with_cut_off_scene(folder):
    cut_off(folder / "scene_1.npz")


def cut_off(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def with_altered_scene(folder):
    content = bytearray((folder / "scene_0.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "scene_0.npz").write_bytes(content)


def with_empty_scene(folder):
    (folder / "scene_1.npz").write_bytes(b"")


def with_a_single_array(folder):
    with (folder / "scene_0.npz").open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("layout", "spoil", "error", "message"),
    [
        ("clevr3d", without_metadata, FileNotFoundError, "no poses of the cameras at"),
        ("clevr3d", without_positions, ValueError, r"expected camera_pos in .*got \['shape'\]"),
        ("clevr3d", without_view, FileNotFoundError, "img_1_2.png: every scene needs all"),
        ("clevr3d", with_one_scene, ValueError, "camera_pos for scene 1 .* got those of 1 scenes"),
        ("uorf", without_pose, FileNotFoundError, "no pose of the camera of .*sc0001"),
        ("uorf", with_scaled_pose, ValueError, "rotations with orthonormal columns .* off by 3"),
        ("uorf", with_short_pose, ValueError, r"expected a matrix \(4,4\) in .*_RT.txt, got"),
        ("uorf", with_fewer_views, ValueError, "expected 3 views in scene 1 of .*, got 2; give"),
        ("msn", without_rays, ValueError, "expected ray_origins, ray_directions in .*scene_0"),
        ("clevr3d", with_cut_off_metadata, ValueError, "metadata.npz holds no arrays that can be"),
        ("msn", with_cut_off_scene, ValueError, "scene_1.npz holds no arrays that can be read"),
        ("msn", with_altered_scene, ValueError, r"scene_0.npz holds no .*CRC-32.*; restore it"),
        ("msn", with_empty_scene, ValueError, "scene_1.npz holds no arrays that can be read"),
        ("msn", with_a_single_array, ValueError, r"scene_0.npz holds .* \(it is a single array\)"),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(tmp_path, layout, spoil, error, message):
    WRITERS[layout](tmp_path / "in")
    spoil(tmp_path / "in")
    with pytest.raises(error, match=message):
        read(tmp_path / "in", tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", WRITERS)
def test_empty_folders_and_unknown_layouts_are_refused(tmp_path, layout):
    with pytest.raises(FileNotFoundError, match="no folder"):
        read(tmp_path / "nowhere", tmp_path / "out", layout)
    with pytest.raises(FileNotFoundError, match=r"no (poses|pictures|scenes)"):
        read(tmp_path, tmp_path / "out", layout)
    with pytest.raises(ValueError, match="expected a layout of clevr3d, uorf, msn, got 'nerf'"):
        read(tmp_path, tmp_path / "out", "nerf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extrinsics": None}, "both 'intrinsics' and 'extrinsics' .* got only 'intrinsics'"),
        ({"intrinsics": None}, "got only 'extrinsics'"),
        ({"extrinsics": np.tile(np.diag([1.0, 1, 2, 1]), (2, 3, 1, 1))}, "orthonormal columns"),
        ({"extrinsics": np.tile(np.eye(4), (2, 2, 1, 1))}, r"'extrinsics' as floats \(3, 4, 4\)"),
        ({"intrinsics": np.zeros((2, 3, 3, 3))}, "positive focal lengths"),
    ],
)
def test_no_episode_is_written_with_bad_cameras(tmp_path, change, message):
    episode = {
        "frames": np.zeros((2, 3, 4, 4, 3), np.uint8),
        "intrinsics": np.tile(np.eye(3), (2, 3, 1, 1)),
        "extrinsics": np.tile(np.eye(4), (2, 3, 1, 1)),
    }
    changed = {name: value for name, value in (episode | change).items() if value is not None}
    with EpisodeWriter(tmp_path / "e", metadata={}) as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(changed)
        writer.append(episode)
    assert len(EpisodeStore(tmp_path / "e")) == 1


def test_the_command_imports_them(tmp_path, capsys):
    specification = importlib.util.spec_from_file_location(
        "convert_episodes", ROOT / "scripts" / "convert_episodes.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    write_uorf(tmp_path / "in")
    source, target = str(tmp_path / "in"), str(tmp_path / "out")
    command = ["import-posed", source, target, "--layout", "uorf", "--num-views", "2"]
    assert module.main([*command, "--image-size", "16", "16"]) == 0
    assert "2 episodes, 2 frames" in capsys.readouterr().out
    assert EpisodeStore(target).arrays["frames"].shape == (2, 16, 16, 3)
    assert module.main(["import-posed", source, target, "--layout", "msn"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
