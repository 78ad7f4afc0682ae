"""The central types, and the letters that every shape in the library is written in.

B batch, T frames, V views (cameras), K slots, D slot size, N tokens of a frame, F token
features, C H W image, A action size, P points or rays, G code groups, V also the vocabulary of
tokens, where there are no views; of what is imagined, H steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

BACKGROUND_ID = 0
"""Segmentation id of everything that is no object."""
VOID_ID = 65535
"""Segmentation id of pixels that no metric may count."""
NUM_COLOURS = 3
"""C of frames: red, green and blue."""


@dataclass(frozen=True)
class Camera:
    """Pinhole cameras, one per frame and view, V = 1 for frames without a view axis.

    A camera looks along its z axis, x is right and y is down in the image; the centre of the pixel
    in column i and row j is (i + 0.5, j + 0.5).

    Attributes:
        intrinsics: (B,T,V,3,3), in pixels.
        extrinsics: (B,T,V,4,4), camera to world.
    """

    intrinsics: Tensor
    extrinsics: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Camera:
        """Change both matrices."""
        return Camera(function(self.intrinsics), function(self.extrinsics))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Camera:
        """Move both matrices to `device`."""
        return self.map(lambda value: value.to(device, non_blocking=non_blocking))

    def frames(self) -> Camera:
        """Each frame as a clip of its own: (B*T,1,V,...)."""
        return self.map(lambda value: value.flatten(0, 1)[:, None])

    def __getitem__(self, time: slice) -> Camera:
        """Cut a range of frames."""
        return self.map(lambda value: value[:, time])


@dataclass(frozen=True)
class Clip:
    """A batch of equally long pieces of episodes.

    With several cameras a V axis stands after T in `video`, `segmentation`, `boxes` and `depth`,
    and in the property `position`.
    `reward`, `terminated` and `truncated` at t are the outcome of the step that led to frame t
    (zero where `is_first`); `action` at t is what was done after seeing frame t.

    Attributes:
        video: (B,T,[V,]C,H,W), uint8 as stored or float in [0,1].
        is_first: (B,T) bool, true on the first frame of an episode.
        action: (B,T) int64 or (B,T,A) float32.
        reward: (B,T) float32.
        terminated: (B,T) bool.
        truncated: (B,T) bool.
        segmentation: preset name to (B,T,[V,]H,W) ids in int32; 0 background, 65535 void. An id
            belongs to one object for a whole episode.
        boxes: (B,T,[V,]M,4) left, top, right, bottom in [0,1]; padding rows are -1.
        properties: name to (B,T,M,...) object attributes; or the targets of set prediction, see
            `ocrl.properties.PropertySpec`.
        camera: the cameras of posed views.
        depth: (B,T,[V,]H,W) float32 along the axis of the camera, in units of the world.
        slots: (B,T,K,D), where an encoder that does not change any more has read them before.
    """

    video: Tensor
    is_first: Tensor
    action: Tensor | None = None
    reward: Tensor | None = None
    terminated: Tensor | None = None
    truncated: Tensor | None = None
    segmentation: Mapping[str, Tensor] = field(default_factory=dict)
    boxes: Tensor | None = None
    properties: Mapping[str, Tensor] = field(default_factory=dict)
    camera: Camera | None = None
    depth: Tensor | None = None
    slots: Tensor | None = None

    def __post_init__(self) -> None:
        if self.video.ndim not in (5, 6):
            raise ValueError(
                f"video must be (B,T,C,H,W) or (B,T,V,C,H,W), got shape {tuple(self.video.shape)}"
            )
        if self.is_first.shape != self.video.shape[:2]:
            raise ValueError(
                f"is_first must be (B,T) = {tuple(self.video.shape[:2])}, "
                f"got {tuple(self.is_first.shape)}"
            )

    @property
    def batch_size(self) -> int:
        """B."""
        return self.video.shape[0]

    @property
    def num_frames(self) -> int:
        """T."""
        return self.video.shape[1]

    @property
    def num_views(self) -> int:
        """V, 1 for the ordinary single camera."""
        return self.video.shape[2] if self.video.ndim == 6 else 1

    def _map(self, function) -> Clip:  # type: ignore[no-untyped-def]
        changes: dict[str, object] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor | Camera):
                changes[entry.name] = function(value)
            elif isinstance(value, Mapping):
                changes[entry.name] = {name: function(tensor) for name, tensor in value.items()}
        return replace(self, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Clip:
        """Move every tensor to `device`; frames keep their dtype, so that uint8 travels."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def take_views(self, views: Tensor) -> Clip:
        """Some of the cameras of each sample, the same ones in all of its frames.

        Args:
            views: (B,W) numbers of the W cameras to take.

        Raises:
            ValueError: if the clip has no view axis.
        """
        if self.video.ndim != 6:
            raise ValueError(
                f"expected frames of several cameras (B,T,V,C,H,W), got {tuple(self.video.shape)}"
            )
        sample = torch.arange(self.batch_size, device=views.device)[:, None]

        def take(value: Tensor) -> Tensor:
            return value.transpose(1, 2)[sample, views].transpose(1, 2)

        properties = dict(self.properties)
        if "position" in properties and properties["position"].ndim == 5:
            properties["position"] = take(properties["position"])
        return replace(
            self,
            video=take(self.video),
            segmentation={name: take(ids) for name, ids in self.segmentation.items()},
            boxes=None if self.boxes is None else take(self.boxes),
            properties=properties,
            camera=None if self.camera is None else self.camera.map(take),
            depth=None if self.depth is None else take(self.depth),
        )

    def __getitem__(self, time: slice) -> Clip:
        """Cut a range of frames from every tensor."""
        if not isinstance(time, slice):
            raise TypeError(f"a Clip is cut with a slice over frames, got {type(time).__name__}")
        return self._map(lambda value: value[time] if isinstance(value, Camera) else value[:, time])

    def to_float(self) -> Clip:
        """Turn uint8 frames into float32 in [0,1], on the device where they are."""
        if self.video.dtype != torch.uint8:
            return self
        return replace(self, video=self.video.float().div_(255.0))


@dataclass(frozen=True)
class SlotOutput:
    """What a slot encoder gives.

    Attributes:
        slots: (B,T,K,D).
        attn: (B,T,K,N), softmax over slots before renormalisation: sums to 1 over K.
        queries: (B,T,K,D) the binding of each frame started from.
        codes: (B,T,K,G) discrete codes, where the slots are quantised.
        aux: named tensors that an objective may read.
        slot_mask: (B,T,K) bool, false for slots that hold nothing and are to be left out, where
            some are (`ocrl.merging`); None means that all count.
    """

    slots: Tensor
    attn: Tensor
    queries: Tensor | None = None
    codes: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    slot_mask: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> SlotOutput:
        """Change every tensor, those of `aux` too."""
        return SlotOutput(
            slots=function(self.slots),
            attn=function(self.attn),
            queries=None if self.queries is None else function(self.queries),
            codes=None if self.codes is None else function(self.codes),
            aux={name: function(value) for name, value in self.aux.items()},
            slot_mask=None if self.slot_mask is None else function(self.slot_mask),
        )


@dataclass(frozen=True)
class DecoderOutput:
    """What a decoder gives.

    Attributes:
        recon: (B,T,C,H,W) pixels, (B,T,C,h,w) the colours of rays, (B,T,N,F) features, (B,T,N,V)
            logits of tokens, or the properties (B,T,K,...) of a set.
        masks: (B,T,K,h,w), sums to 1 over K; (h,w) is the decoder's own resolution.
        parts: (B,T,K,...) the reconstruction of each slot, where the decoder makes one.
        aux: named tensors that an objective may read. A decoder that reads what it reconstructs
            gives that as `target`, (B,T,N) tokens or (B,T,N,F) features, and one that trains a
            tokenizer gives the frames as the tokenizer saw them as `tokenized`, (B,T,C,H,W). One
            that is a distribution over frames gives the log density of each pixel of the frames
            it was given as `log_prob`, (B,T,H,W) in nats.
    """

    recon: Tensor
    masks: Tensor
    parts: Tensor | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SlotPrediction:
    """What a slot dynamics says of the frames after those it read.

    Attributes:
        slots: (B,T,K,D), those of frame t + 1 at place t.
        carried: (B,T,K,E) the same in the dynamics' own terms, from which it goes on when it
            imagines; `slots` themselves unless it has a latent (`ocrl.dynamics.latent`).
        logits: (B,T,K,G,C) of a latent's distributions, in float32; None without a latent.
    """

    slots: Tensor
    carried: Tensor
    logits: Tensor | None = None

    @staticmethod
    def joined(parts: Sequence[SlotPrediction]) -> SlotPrediction:
        """Predictions of frames one after the other as one."""
        slots = torch.cat([part.slots for part in parts], dim=1)
        carried = slots
        if any(part.carried is not part.slots for part in parts):
            carried = torch.cat([part.carried for part in parts], dim=1)
        logits = [part.logits for part in parts if part.logits is not None]
        return SlotPrediction(slots, carried, torch.cat(logits, dim=1) if logits else None)


@dataclass(frozen=True)
class Imagined:
    """A future that a slot dynamics imagined.

    Attributes:
        prediction: of each step; `prediction.slots` (B,H,K,D) at place h are those after action h.
        action: (B,H) or (B,H,A), what was done at each step; None without actions.
        state: the dynamics' state, which has not read the last slots yet.
    """

    prediction: SlotPrediction
    action: Tensor | None
    state: object

    @property
    def slots(self) -> Tensor:
        """(B,H,K,D)."""
        return self.prediction.slots
