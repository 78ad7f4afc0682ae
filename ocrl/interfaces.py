"""Abstract classes of the parts: who takes what and gives what. No maths.

B batch, T frames, V views, K slots, D slot size, N tokens, F token features, C H W image,
A action size, H imagined steps, E size of what a dynamics carries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ocrl.types import Camera, Clip, DecoderOutput, Imagined, SlotOutput, SlotPrediction

State = Any
"""A pytree (dict, tuple, tensor) of tensors with leading B; passed in and out, never kept."""

Space = Literal["pixels", "features", "tokens", "rays", "set"]


class Backbone(nn.Module, ABC):
    """Frames to tokens.

    Attributes:
        out_dim: F.
        image_size: (H, W) of the frames it takes.
        grid: (h, w) tokens of one view; N = V * h * w.
        needs_camera: it makes nothing of frames without poses.
        has_rays: tokens end with the ray that each looks along, see `ocrl.nn.triangulation`.
    """

    out_dim: int
    image_size: tuple[int, int]
    grid: tuple[int, int]
    needs_camera: bool = False
    has_rays: bool = False

    @abstractmethod
    def forward(self, frames: Tensor, *, camera: Camera | None = None) -> Tensor:
        """Encode frames.

        Args:
            frames: (B,[V,]C,H,W) float in [0,1].
            camera: cameras of the views, with T = 1, for backbones that know about poses.

        Returns:
            (B,N,F).

        Raises:
            ValueError: if the frames have another size than `image_size`.
        """


class Tokenizer(nn.Module, ABC):
    """Frames to tokens of a finite vocabulary, and back.

    Attributes:
        vocabulary_size: V, tokens are in 0 ... V - 1.
        image_size: (H, W) of the frames it takes.
        grid: (h, w) tokens; N = h * w.
    """

    vocabulary_size: int
    image_size: tuple[int, int]
    grid: tuple[int, int]

    @abstractmethod
    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Tokenize frames, and give them back as the tokenizer saw them.

        Args:
            frames: (B,C,H,W) float in [0,1].

        Returns:
            Tokens (B,N) int64, drawn in training and the likeliest in `eval()`; and frames
            (B,C,H,W), through which the tokenizer learns.

        Raises:
            ValueError: if the frames have another size than `image_size`.
        """

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """The frames (B,C,H,W) of tokens (B,N)."""


class Initializer(nn.Module, ABC):
    """The queries that the first binding starts from."""

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Make queries (B,K,D) for the tokens (B,N,F) of a first frame."""


class SlotEncoder(nn.Module, ABC):
    """Video to slots, in parallel over a clip or streamed frame by frame.

    The contract, asserted by `ocrl.check.check_slot_encoder`: `forward` over a clip equals a scan
    of `step` (1e-4 in float32), `is_first` anywhere in the clip equals a fresh start there, and
    no sample of a batch touches another. In `eval()` both are deterministic.

    Attributes:
        num_slots: K.
        slot_dim: D.
        backbone: frames to tokens; `backbone.grid` shapes `attn` for drawing.
        num_axes: numbers of a slot's place, with which it ends (`ocrl.nn.location.join_placed`): 2
            on the picture, 3 in the world; 0 of slots that do not tell.
    """

    num_slots: int
    slot_dim: int
    backbone: Backbone
    num_axes: int = 0

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before any frame, on the encoder's own device."""

    @abstractmethod
    def forward(
        self,
        video: Tensor,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> SlotOutput:
        """Encode a clip from a fresh start.

        Args:
            video: (B,T,[V,]C,H,W) float in [0,1].
            is_first: (B,T) bool.
            action: (B,T) or (B,T,A), what was done after each frame.
            condition: (B,K,4) boxes of the first frame, or another hint the initializer knows.
            camera: cameras of all frames and views, for backbones that know about poses.
        """

    @abstractmethod
    def step(
        self,
        frame: Tensor,
        state: State,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> tuple[SlotOutput, State]:
        """Encode one frame.

        Args:
            frame: (B,[V,]C,H,W) float in [0,1].
            state: from `initial_state` or the previous step; it is not changed in place.
            is_first: (B,) bool; true starts those samples afresh.
            action: (B,) or (B,A), what was done after the **previous** frame.
            condition: as in `forward`, read where `is_first`.
            camera: cameras of this frame, with T = 1.

        Returns:
            Slots with T = 1, and the next state.
        """


class FrameSlotEncoder(SlotEncoder):
    """An encoder without memory: every frame by itself, all frames of a clip at once."""

    @abstractmethod
    def encode(
        self, frames: Tensor, *, condition: Tensor | None, camera: Camera | None = None
    ) -> SlotOutput:
        """Encode frames (B,[V,]C,H,W), a condition and cameras for each; the result has T = 1."""

    def initial_state(self, batch_size: int) -> State:
        """Nothing: no frame depends on an earlier one."""
        return {}

    def forward(
        self,
        video: Tensor,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> SlotOutput:
        """Encode a clip, see `SlotEncoder.forward`. A condition (B,K,4) holds for every frame."""
        shape = video.shape[:2]
        if condition is not None:
            condition = condition.repeat_interleave(shape[1], dim=0)
        cameras = None if camera is None else camera.frames()
        output = self.encode(video.flatten(0, 1), condition=condition, camera=cameras)
        return output.map(lambda value: value.flatten(0, 1).unflatten(0, shape))

    def step(
        self,
        frame: Tensor,
        state: State,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> tuple[SlotOutput, State]:
        """Encode one frame, see `SlotEncoder.step`."""
        return self.encode(frame, condition=condition, camera=camera), state


class RecurrentSlotEncoder(SlotEncoder):
    """An encoder that is a scan: one `bind` per frame over tokens made for all frames at once."""

    @abstractmethod
    def bind(
        self,
        tokens: Tensor,
        state: State,
        is_first: Tensor | bool,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[SlotOutput, State]:
        """Bind the tokens (B,N,F) of one frame.

        Args:
            tokens: (B,N,F).
            state: as in `step`.
            is_first: (B,) bool; or one Python bool where all samples are known to start afresh
                here, or to go on from earlier frames, which saves computing both.
            action: as in `step`.
            condition: as in `step`.
        """

    def step(
        self,
        frame: Tensor,
        state: State,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> tuple[SlotOutput, State]:
        """Encode one frame, see `SlotEncoder.step`."""
        tokens = self.backbone(frame, camera=camera)
        return self.bind(tokens, state, is_first, action=action, condition=condition)

    def forward(
        self,
        video: Tensor,
        is_first: Tensor,
        *,
        action: Tensor | None = None,
        condition: Tensor | None = None,
        camera: Camera | None = None,
    ) -> SlotOutput:
        """Encode a clip, see `SlotEncoder.forward`."""
        batch_size, num_frames = video.shape[:2]
        cameras = None if camera is None else camera.frames()
        tokens = self.backbone(video.flatten(0, 1), camera=cameras)
        tokens = tokens.unflatten(0, (batch_size, num_frames))
        # unbind, not indexing: the backward of x[:, t] writes the whole clip once per frame.
        actions: list[Tensor | None] = [None] * num_frames
        if action is not None:
            # The frame at t was reached by the action taken after frame t - 1.
            actions = [torch.zeros_like(action[:, 0]), *action.unbind(1)[:-1]]
        state = self.initial_state(batch_size)
        outputs = []
        frames = zip(tokens.unbind(1), _starts(is_first), actions, strict=True)
        for frame_tokens, first, frame_action in frames:
            output, state = self.bind(
                frame_tokens, state, first, action=frame_action, condition=condition
            )
            outputs.append(output)
        return _concatenate_frames(outputs)


def _starts(is_first: Tensor) -> list[Tensor | bool]:
    """Where samples start, frame by frame; the clip itself is a start."""
    later = is_first[:, 1:]
    if torch.compiler.is_compiling():
        return [True, *later.unbind(1)]
    # One synchronisation per clip; most frames start nothing and need no second computation.
    some, every = torch.stack([later.any(0), later.all(0)]).tolist()
    starts: list[Tensor | bool] = [True]
    for first, any_starts, all_start in zip(later.unbind(1), some, every, strict=True):
        starts.append(first if any_starts != all_start else all_start)
    return starts


def _concatenate_frames(outputs: list[SlotOutput]) -> SlotOutput:
    first = outputs[0]

    def joined(name: str) -> Tensor | None:
        if getattr(first, name) is None:
            return None
        return torch.cat([getattr(output, name) for output in outputs], dim=1)

    slots, attn = joined("slots"), joined("attn")
    assert slots is not None and attn is not None
    aux = {name: torch.cat([out.aux[name] for out in outputs], dim=1) for name in first.aux}
    return SlotOutput(slots, attn, joined("queries"), joined("codes"), aux, joined("slot_mask"))


class ScheduledModule(ABC):
    """A module that behaves differently as training goes on; a mixin beside `nn.Module`.

    Attributes:
        progress: scalar buffer in [0,1], the share of training that is done.
    """

    progress: Tensor

    def set_progress(self, fraction: float) -> None:
        """Tell how much of training is done; the trainer does so before every step.

        Raises:
            ValueError: if `fraction` is not in [0,1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must be in [0,1], got {fraction}")
        self.progress.fill_(fraction)


class TaughtModule(ABC):
    """A module that learns from a trained model beside the data; a mixin beside `nn.Module`.

    The teacher comes after building: what is saved of the student can be loaded without it.

    Attributes:
        teacher_path: the teacher's checkpoint, or the directory of the run that wrote it.
    """

    teacher_path: str | None

    @abstractmethod
    def take_teacher(self, teacher: nn.Module, *, student: nn.Module) -> None:
        """Learn from `teacher`, which is no part of this module: not trained, saved or copied.

        Args:
            teacher: a trained model.
            student: the model that this module is a part of.

        Raises:
            ValueError: if the two do not fit.
        """


class SlotCodes(ABC):
    """Slots that discrete codes stand for; a mixin beside `SlotEncoder`.

    Attributes:
        code_sizes: number of codes of each group; empty if the encoder was built to give none.
    """

    code_sizes: tuple[int, ...]

    @abstractmethod
    def slots_of(self, codes: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """The slots (...,K,D) of codes (...,K,G): change a code to edit an object.

        Args:
            codes: (...,K,G).
            coordinates: (...,K,P) that stand beside the codes, as `aux["coordinates"]` has them;
                None for an encoder that has none.

        Raises:
            ValueError: if coordinates are missing, or given though there are none.
        """


class CodeReader(ABC):
    """A module that speaks of slots in an encoder's codes; a mixin beside `nn.Module`."""

    @abstractmethod
    def take_codes(self, encoder: SlotEncoder) -> None:
        """Learn which slots an encoder's codes stand for.

        Raises:
            ValueError: if its slots are not codes alone, or codes can not be read back from them.
        """


class CodePrior(nn.Module, ABC):
    """A distribution over the codes of a scene, whose slots are a set.

    Attributes:
        num_slots: K.
        code_sizes: number of codes of each group; G of them.
    """

    num_slots: int
    code_sizes: tuple[int, ...]

    @abstractmethod
    def log_prob(self, codes: Tensor) -> Tensor:
        """The log-likelihood (B,) of codes (B,K,G), in nats and float32."""

    @abstractmethod
    def sample(
        self,
        num_scenes: int,
        *,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw codes (B,K,G) of new scenes.

        Args:
            num_scenes: B.
            temperature: divides every logit; 1 for the distribution itself, less for likelier
                scenes.
            generator: of the random numbers, on the prior's device.

        Raises:
            ValueError: if the temperature is not positive.
        """


class Decoder(nn.Module, ABC):
    """Slots to something an objective compares with the clip.

    Attributes:
        space: what it reconstructs.
        needs_target: it makes nothing without the frames.
        needs_attn: it draws only where the encoder saw a slot, so no slots that are imagined.
        num_axes: numbers of the place that it expects at the end of a slot; 0 if none is read.
    """

    space: Space
    needs_target: bool = False
    needs_attn: bool = False
    num_axes: int = 0

    @abstractmethod
    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Decode slots.

        Args:
            slots: (B,T,K,D).
            target: (B,T,C,H,W) the frames, for decoders that read what they reconstruct.
            attn: (B,T,K,N) where the encoder saw each slot, for decoders that draw there.
        """

    def depict(self, slots: Tensor, *, attn: Tensor | None = None) -> Tensor | None:
        """Pictures (B,T,C,H,W) of slots (B,T,K,D) alone, from a decoder whose `recon` is none.

        None, as here, if it can not draw; decoders of pixels need not define it.
        """
        return None


class RayDecoder(Decoder):
    """Slots to pictures of any rays: of one camera or several, or drawn at random in one row.

    `masks` say which slot a ray shows, among slots. What no slot explains (a static field, the sky,
    nothing at all), of those that know such, is `aux["background"]`, (B,T,h,w) in [0,1]: a slot's
    share of a ray is its mask times what is left.

    Attributes:
        bounds: near and far, the lengths along rays between which it looks; None if it needs none.
    """

    space: Space = "rays"
    needs_target = True
    bounds: tuple[float, float] | None = None

    @abstractmethod
    def render(self, slots: Tensor, rays: Tensor) -> DecoderOutput:
        """Colours (B,T,3,h,w) and masks (B,T,K,h,w) of rays (B,T,h,w,6), see `forward`."""

    def forward(
        self, slots: Tensor, target: Tensor | None = None, *, attn: Tensor | None = None
    ) -> DecoderOutput:
        """Paint rays.

        Args:
            slots: (B,T,K,D).
            target: rays (B,T,h,w,6), the origin and the unit direction of each, in the world, see
                `ocrl.nn.rays`.
            attn: not read.

        Raises:
            ValueError: if there are no rays.
        """
        expected = (*slots.shape[:2], 6)
        if target is None or target.ndim != 5 or (*target.shape[:2], target.shape[-1]) != expected:
            got = "none" if target is None else f"shape {tuple(target.shape)}"
            raise ValueError(
                f"expected rays (B,T,h,w,6) with B, T = {expected[:2]} as target, got {got}: this "
                "decoder draws posed views, not frames"
            )
        return self.render(slots, target)


class ViewChooser(ABC):
    """Which views an encoder sees, and which rays a decoder is asked for; beside `Objective`.

    Attributes:
        num_seen: how many views the encoder sees.
        num_rays: how many rays of a moment the decoder is asked for.
    """

    num_seen: int
    num_rays: int

    @abstractmethod
    def choose(self, clip: Clip) -> tuple[Clip, Clip, Tensor]:
        """Draw from a clip of posed views, uint8 or float.

        Returns:
            The clip that the encoder sees; the colours asked for, as a clip whose frames (h,w) are
            pictures of the rays; and these rays (B,T,h,w,6).

        Raises:
            ValueError: if the clip has no cameras, or too few views.
        """


class Objective(nn.Module, ABC):
    """One training signal. Its key in the configuration is the key of its weight.

    Attributes:
        reads_seen: compare with the views that the encoder saw, where a `ViewChooser` asks the
            decoder for rays of others as well.
    """

    reads_seen: bool = False

    @abstractmethod
    def forward(self, clip: Clip, encoded: SlotOutput, decoded: DecoderOutput) -> Tensor:
        """The scalar loss, in float32. `clip.video` is float."""


Policy = Callable[[Tensor], Tensor]
"""Slots (B,K,D) to actions (B,) or (B,A)."""


class SlotDynamics(nn.Module, ABC):
    """Slots and actions to the next slots, in parallel over a clip, streamed, or imagined.

    The contract, asserted by `ocrl.check.check_dynamics`: `forward` over a clip equals a scan of
    `step` (1e-4 in float32), `is_first` anywhere in the clip equals a fresh start there, no sample
    of a batch touches another, and permuted slots give permuted predictions. In `eval()` all are
    deterministic. The number of slots is free.

    One method holds the maths, `advance`, which reads any number of frames at once; the others
    are `advance` from the start, for one frame, or on what it said itself.

    Attributes:
        slot_dim: D.
        num_actions: of a discrete action space, 0 for none.
        action_dim: A of a continuous action space, 0 for none.
    """

    slot_dim: int
    num_actions: int
    action_dim: int

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before any frame, on the dynamics' own device."""

    @abstractmethod
    def advance(
        self, carried: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        """Read frames after those in the state, all at once, and predict what follows each.

        Args:
            carried: (B,T,K,E), from `carry` or an earlier prediction.
            action: (B,T) int64 or (B,T,A), done after each frame; None without actions.
            state: from `initial_state` or an earlier call; it is not changed in place.
            is_first: (B,T) bool; nothing before such a frame is seen from it on.

        Raises:
            ValueError: if the action is not of the dynamics' kind.
        """

    def carry(self, slots: Tensor) -> Tensor:
        """Slots (B,T,K,D) in the dynamics' own terms (B,T,K,E).

        The slots as they are, as here, unless it has a latent.
        """
        return slots

    def costs(self, prediction: SlotPrediction, target: Tensor) -> Mapping[str, Tensor]:
        """What the dynamics itself asks of its prediction, beside a distance of slots.

        Nothing, as here, unless it has a latent.

        Args:
            prediction: with slots (B,T,K,D).
            target: (B,T,K,D), what came true.

        Returns:
            By name, weighted and in float32, (B,T,K).
        """
        return {}

    def observe(
        self, slots: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[SlotPrediction, State]:
        """Read the slots (B,T,K,D) of frames after those in the state, see `advance`."""
        return self.advance(self.carry(slots), action, state, is_first)

    def forward(self, slots: Tensor, action: Tensor | None, is_first: Tensor) -> Tensor:
        """Predict (B,T,K,D): the slots of frame t + 1 from those up to t, for all t at once."""
        state = self.initial_state(len(slots))
        return self.observe(slots, action, state, is_first)[0].slots

    def step(
        self, slots: Tensor, action: Tensor | None, state: State, is_first: Tensor
    ) -> tuple[Tensor, State]:
        """Predict the next slots (B,K,D) from those of one frame (B,K,D).

        Args:
            slots: (B,K,D).
            action: (B,) or (B,A).
            state: as in `advance`.
            is_first: (B,) bool.
        """
        done = None if action is None else action[:, None]
        prediction, state = self.observe(slots[:, None], done, state, is_first[:, None])
        return prediction.slots[:, 0], state

    def imagine(
        self,
        slots: Tensor,
        state: State,
        policy: Policy | Tensor | None,
        horizon: int,
        *,
        is_first: Tensor | None = None,
    ) -> Imagined:
        """Go on from a frame without seeing any other.

        Args:
            slots: (B,K,D) of a frame that is not in the state yet.
            state: of the frames before it; `initial_state` if there are none.
            policy: gives the action after each frame; or the actions themselves, (B,H) or
                (B,H,A); None without actions.
            horizon: H, steps.
            is_first: (B,) bool, where the frame begins an episode: nothing of the state is seen
                there. Nowhere if None.

        Raises:
            ValueError: if `horizon` is not positive, or there are not as many actions.
        """
        if horizon < 1:
            raise ValueError(f"expected a horizon of at least 1, got {horizon}")
        if isinstance(policy, Tensor) and policy.shape[1] != horizon:
            raise ValueError(f"expected actions (B,{horizon},...), got {tuple(policy.shape)}")
        given = policy.unbind(1) if isinstance(policy, Tensor) else None
        goes_on = torch.zeros(len(slots), 1, dtype=torch.bool, device=slots.device)
        begins = goes_on if is_first is None else is_first[:, None]
        carried = self.carry(slots[:, None])
        steps: list[SlotPrediction] = []
        actions: list[Tensor] = []
        for index in range(horizon):
            action = given[index] if given is not None else None
            if callable(policy):
                action = policy(steps[-1].slots[:, 0] if steps else slots)
            if action is not None:
                actions.append(action)
                action = action[:, None]
            prediction, state = self.advance(carried, action, state, begins)
            steps.append(prediction)
            carried, begins = prediction.carried, goes_on
        prediction = SlotPrediction.joined(steps)
        return Imagined(prediction, torch.stack(actions, dim=1) if actions else None, state)
