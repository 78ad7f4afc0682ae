"""Episodes of one frame from several posed cameras: folders of CLEVR3D, ObSuRF-MSN, uORF, MSN.

V views, H W image. Cameras follow `ocrl.types.Camera`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocrl.data.folders import check_image_size, open_picture
from ocrl.data.format import Arrays
from ocrl.data.store import EpisodeStore, EpisodeWriter, new_folder

_CLEVR_FOCAL = 0.035 / 0.032
"""Focal length over the sensor's width, of CLEVR's camera in Blender."""
_UORF_FOCAL = (350.0 / 320.0, 350.0 / 240.0)
"""Focal lengths over the image's width and height."""
_UORF_EXTRA = re.compile(
    r"_(mask|mask_for_moving|moved|mask_for_bg|mask_for_providing_bg|changed|providing_bg)$"
)
_MSN_KEYS = ("color_image", "ray_origins", "ray_directions")
_NO_PINHOLE = 1e-3


def import_posed(
    source: str | Path,
    path: str | Path,
    *,
    layout: str,
    image_size: Sequence[int] | None,
    num_views: int | None,
) -> EpisodeStore:
    """Make a store of static scenes seen by several cameras: an episode of one frame for each.

    Pictures are brought to `image_size` whole, with another ratio of their sides if need be, and
    the intrinsics with them. Masks become the segmentation `entities`. Layouts:
      - `clevr3d`: CLEVR3D and ObSuRF-MSN (Stelzner et al. 2021, arXiv 2104.01148), as OSRT reads
        them. `images/img_<scene>_<view>.png`, `masks/masks_<scene>_<view>.png`, and `metadata.npz`
        with `camera_pos` (scenes,V,3); cameras look at the origin, z is up.
      - `uorf`: `*sc<scene>*.png` with a camera-to-world matrix beside it as `*_RT.txt`, and maybe
        `*_mask.png` (Yu et al. 2022, arXiv 2107.07905). In masks each grey level is an object; the
        second lowest of a scene is the background, as the authors read them.
      - `msn`: a file `*.npz` for each scene with `color_image` (V,H,W,3), `ray_origins` and
        `ray_directions` (V,H,W,3), and maybe `instance_image` (V,H,W) whose 0 and 1 are background
        (Sajjadi et al. 2022, arXiv 2206.06922). The cameras are found from the rays.

    Args:
        source: the folder.
        path: the store's folder; it appears when it is whole.
        layout: one of `LAYOUTS`.
        image_size: (H, W); None keeps the size of the pictures.
        num_views: V, the first ones of each scene; None for as many as the first scene has.

    Raises:
        FileNotFoundError: if there are no scenes, or a picture or pose is missing.
        FileExistsError: if `path` is there already.
        ValueError: if a file can not be read, scenes have other numbers of views, or a pose is
            none.
        OSError: if the store can not be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout of {', '.join(LAYOUTS)}, got {layout!r}")
    check_image_size(image_size)
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}; correct the path")
    metadata = {"source": layout, "path": source.name}
    with new_folder(path) as folder, EpisodeWriter(folder, metadata=metadata) as writer:
        for name, scene in LAYOUTS[layout](source, image_size):
            found = len(scene["frames"])
            num_views = num_views or found
            if found < num_views:
                raise ValueError(
                    f"expected {num_views} views in scene {name} of {source}, got {found}; give a "
                    "num_views that every scene has"
                )
            arrays = {key: array[None, :num_views] for key, array in scene.items()}
            writer.append({**arrays, "name": np.array(name)})
    return EpisodeStore(path)


def _read_clevr3d(source: Path, image_size: Sequence[int] | None) -> Iterator[tuple[str, Arrays]]:
    places = _camera_places(source / "metadata.npz")
    pattern = re.compile(r"img_(\d+)_0\.png")
    names = [pattern.fullmatch(file.name) for file in (source / "images").glob("img_*_0.png")]
    scenes = sorted(int(match[1]) for match in names if match)
    if not scenes:
        raise FileNotFoundError(f"no pictures images/img_<scene>_<view>.png in {source}")
    if scenes[-1] >= len(places):
        raise ValueError(
            f"expected a camera_pos for scene {scenes[-1]} in {source / 'metadata.npz'}, got those "
            f"of {len(places)} scenes"
        )
    has_masks = (source / "masks").is_dir()
    for scene in scenes:
        views = range(places.shape[1])
        files = [source / "images" / f"img_{scene}_{view}.png" for view in views]
        pictures = [_read_picture(file, image_size) for file in files]
        arrays = _stacked(pictures, files)
        if has_masks:
            masks = [source / "masks" / f"masks_{scene}_{view}.png" for view in views]
            arrays["segmentation/entities"] = np.stack([_read_ids(m, image_size) for m in masks])
        width, height = pictures[0][1]
        focal = _CLEVR_FOCAL, _CLEVR_FOCAL * width / height
        arrays["intrinsics"] = np.stack([_intrinsics(arrays["frames"], focal)] * len(views))
        arrays["extrinsics"] = np.stack([_looking_at_origin(place) for place in places[scene]])
        yield str(scene), arrays


def _camera_places(file: Path) -> NDArray[np.float64]:
    """(scenes,V,3)."""
    if not file.is_file():
        raise FileNotFoundError(
            f"no poses of the cameras at {file}, which has them as camera_pos; restore it"
        )
    metadata = _read_arrays(file)
    if "camera_pos" not in metadata:
        raise ValueError(f"expected camera_pos in {file}, got {sorted(metadata)}")
    places = np.asarray(metadata["camera_pos"], np.float64)
    if places.ndim != 3 or places.shape[-1] != 3:
        raise ValueError(f"expected camera_pos (scenes,V,3) in {file}, got {places.shape}")
    return places


def _read_arrays(file: Path) -> Arrays:
    try:
        # Opened here because np.load leaves a damaged file open.
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise ValueError("it is a single array")
            return {key: content[key] for key in content}
    except (BadZipFile, EOFError, NotImplementedError, OSError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{file} holds no arrays that can be read ({error}); restore it from a copy"
        ) from error


def _looking_at_origin(place: NDArray[np.float64]) -> NDArray[np.float32]:
    """Extrinsics (4,4) of an upright camera."""
    ahead = -place / np.linalg.norm(place)
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = np.stack([right, np.cross(ahead, right), ahead], axis=1)
    matrix[:3, 3] = place
    return matrix


def _read_uorf(source: Path, image_size: Sequence[int] | None) -> Iterator[tuple[str, Arrays]]:
    scenes: dict[int, list[Path]] = {}
    for file in sorted(source.glob("*.png")):
        match = re.search(r"sc(\d+)", file.stem)
        if match and not _UORF_EXTRA.search(file.stem):
            scenes.setdefault(int(match[1]), []).append(file)
    if not scenes:
        raise FileNotFoundError(f"no pictures *sc<scene>*.png in {source}; correct the path")
    for scene, files in sorted(scenes.items()):
        arrays = _stacked([_read_picture(file, image_size) for file in files], files)
        masks = [file.with_name(f"{file.stem}_mask.png") for file in files]
        if all(mask.is_file() for mask in masks):
            levels = np.stack([_read_ids(mask, image_size) for mask in masks])
            arrays["segmentation/entities"] = _numbered(levels)
        arrays["intrinsics"] = np.stack([_intrinsics(arrays["frames"], _UORF_FOCAL)] * len(files))
        arrays["extrinsics"] = np.stack([_read_pose(file) for file in files])
        yield str(scene), arrays


def _numbered(levels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Ids of the grey levels of a scene: the second lowest is background, the others count up."""
    found = np.unique(levels)
    if len(found) < 2:
        return np.zeros_like(levels)
    ids = np.arange(len(found), dtype=np.uint16)
    ids[:2] = 1, 0
    return ids[np.searchsorted(found, levels)]


def _read_pose(picture: Path) -> NDArray[np.float32]:
    """The matrix (4,4) beside a picture."""
    file = picture.with_name(f"{picture.stem}_RT.txt")
    if not file.is_file():
        raise FileNotFoundError(f"no pose of the camera of {picture} at {file}; restore it")
    try:
        matrix = np.loadtxt(file, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"expected a matrix of numbers in {file}: {error}") from error
    if matrix.shape != (4, 4):
        raise ValueError(f"expected a matrix (4,4) in {file}, got {matrix.shape}")
    return matrix


def _read_msn(source: Path, image_size: Sequence[int] | None) -> Iterator[tuple[str, Arrays]]:
    files = sorted(source.glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"no scenes *.npz in {source}; correct the path")
    for file in files:
        scene = _read_arrays(file)
        missing = [key for key in _MSN_KEYS if key not in scene]
        if missing:
            raise ValueError(f"expected {', '.join(missing)} in {file}, got {sorted(scene)}")
        frames = scene["color_image"]
        for key in ("ray_origins", "ray_directions"):
            if frames.ndim != 4 or scene[key].shape != frames.shape:
                raise ValueError(
                    f"expected color_image and {key} (V,H,W,3) of one shape in {file}, got "
                    f"{frames.shape} and {scene[key].shape}"
                )
        pictures = [_scaled(Image.fromarray(frame), image_size) for frame in frames]
        arrays: Arrays = {"frames": np.stack([np.asarray(picture) for picture in pictures])}
        cameras = [
            camera_of_rays(*rays, what=f"view {view} of {file}")
            for view, rays in enumerate(
                zip(scene["ray_origins"], scene["ray_directions"], strict=True)
            )
        ]
        scale = np.array(arrays["frames"].shape[2:0:-1]) / frames.shape[2:0:-1]
        intrinsics = np.stack([camera[0] for camera in cameras])
        intrinsics[:, :2] *= scale[:, None]
        arrays["intrinsics"] = intrinsics.astype(np.float32)
        arrays["extrinsics"] = np.stack([camera[1] for camera in cameras]).astype(np.float32)
        if "instance_image" in scene:
            ids = scene["instance_image"].reshape(frames.shape[:3]).astype(np.int64)
            ids = np.maximum(ids - 1, 0).astype(np.int32)
            scaled = [_scaled(Image.fromarray(view), image_size, is_mask=True) for view in ids]
            arrays["segmentation/entities"] = np.stack(
                [np.asarray(view) for view in scaled]
            ).astype(np.uint16)
        yield file.stem, arrays


def camera_of_rays(
    origins: NDArray[Any], directions: NDArray[Any], *, what: str = "an image"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The pinhole camera whose rays through the pixels' centres these are.

    Directions are M p for pixels p = (column, row, 1), up to lengths, with M = R K^-1: found as the
    least squares solution of d x (M p) = 0, and taken apart into a rotation and a triangle.

    Args:
        origins: (H,W,3), the same for all pixels.
        directions: (H,W,3).
        what: of which they are, for errors.

    Returns:
        Intrinsics (3,3) and extrinsics (4,4).

    Raises:
        ValueError: if there is no such camera.
    """
    origin = origins.reshape(-1, 3).astype(np.float64)
    if np.ptp(origin, axis=0).max() > _NO_PINHOLE * (1.0 + np.abs(origin).max()):
        raise ValueError(f"expected rays from one place in {what}, got origins that differ")
    height, width = directions.shape[:2]
    row, column = np.mgrid[:height, :width] + 0.5
    # Around the middle and in units of the image, so that the system is well conditioned.
    size = max(height, width)
    pixel = np.stack([(column - width / 2) / size, (row - height / 2) / size, 1.0 + 0.0 * row], -1)
    pixel = pixel.reshape(-1, 3)
    way = directions.reshape(-1, 3).astype(np.float64)
    way = way / np.linalg.norm(way, axis=1, keepdims=True)
    zero = np.zeros((len(way), 3))
    x, y, z = (way[:, i : i + 1] * pixel for i in range(3))
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    system = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    solution = np.linalg.eigh(system.T @ system)[1][:, 0].reshape(3, 3)
    # The sign by which pixels lie ahead.
    found = pixel @ solution.T
    solution = solution * np.sign((found * way).sum())
    found = pixel @ solution.T
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    error = np.abs(found - way).max()
    if not error < _NO_PINHOLE:
        raise ValueError(
            f"expected the rays of a pinhole camera in {what}, got directions that are off by "
            f"{error:.2g}"
        )
    rotation, inverse = np.linalg.qr(solution)
    signs = np.sign(np.diag(inverse))
    rotation, inverse = rotation * signs, signs[:, None] * inverse
    intrinsics = np.linalg.inv(inverse)
    intrinsics /= intrinsics[2, 2]
    intrinsics[:2] *= size
    intrinsics[:2, 2] += width / 2, height / 2
    extrinsics = np.eye(4)
    extrinsics[:3, :3], extrinsics[:3, 3] = rotation, origin[0]
    return intrinsics, extrinsics


def _intrinsics(frames: NDArray[np.uint8], focal: tuple[float, float]) -> NDArray[np.float32]:
    """Of pictures (V,H,W,3), from focal lengths over width and height."""
    height, width = frames.shape[1:3]
    matrix = np.eye(3, dtype=np.float32)
    matrix[0, 0], matrix[1, 1] = focal[0] * width, focal[1] * height
    matrix[:2, 2] = width / 2, height / 2
    return matrix


def _read_picture(
    file: Path, image_size: Sequence[int] | None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The frame (H,W,3), and the width and height of the file."""
    _must_be_there(file)
    with open_picture(file) as picture:
        return np.asarray(_scaled(picture.convert("RGB"), image_size)), picture.size


def _read_ids(file: Path, image_size: Sequence[int] | None) -> NDArray[np.uint16]:
    """Grey levels or places in a palette (H,W); the grey of colours."""
    _must_be_there(file)
    with open_picture(file) as picture:
        grey = picture.convert("L") if picture.mode in ("RGB", "RGBA", "LA") else picture
        values = Image.fromarray(np.asarray(grey).astype(np.int32))
        return np.asarray(_scaled(values, image_size, is_mask=True)).astype(np.uint16)


def _must_be_there(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"no picture {file}: every scene needs all of its views")


def _scaled(
    picture: Image.Image, image_size: Sequence[int] | None, *, is_mask: bool = False
) -> Image.Image:
    """A picture of another size, whole."""
    if image_size is None:
        return picture
    resampling = Image.Resampling.NEAREST if is_mask else Image.Resampling.BOX
    return picture.resize((image_size[1], image_size[0]), resampling)


def _stacked(
    pictures: list[tuple[NDArray[np.uint8], tuple[int, int]]], files: list[Path]
) -> Arrays:
    for (frame, _), file in zip(pictures, files, strict=True):
        if frame.shape != pictures[0][0].shape:
            raise ValueError(
                f"expected pictures of {pictures[0][0].shape[:2]} as {files[0]}, got "
                f"{frame.shape[:2]} in {file}; give an image_size to bring them to one"
            )
    return {"frames": np.stack([frame for frame, _ in pictures])}


_Reader = Callable[[Path, Sequence[int] | None], Iterator[tuple[str, Arrays]]]
LAYOUTS: Mapping[str, _Reader] = MappingProxyType(
    {"clevr3d": _read_clevr3d, "uorf": _read_uorf, "msn": _read_msn}
)
"""How the scenes of a folder are read, by name: name and arrays (V,...) of each."""
