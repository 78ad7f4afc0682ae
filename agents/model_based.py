"""Training of agents that learn a world model as they act, and resume exactly.

E environments, R rows, F features of a row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ocrl.agents import spaces
from ocrl.agents.callbacks import Score, check_finite
from ocrl.agents.episode_encoder import EpisodeEncoder
from ocrl.agents.given_world import GivenWorld
from ocrl.agents.learning_settings import LearningSettings, ReplaySettings
from ocrl.agents.memory import FRAME, Memory
from ocrl.agents.replay import EpisodeReplay, Window
from ocrl.agents.rollouts import add_rollouts
from ocrl.agents.run import AgentRun, AgentTraining, Evaluate, MakePart, check_from_one
from ocrl.agents.vector import StableBaselinesVecEnv
from ocrl.agents.world_agent import WorldAgent, WorldNetwork
from ocrl.device import find_device
from ocrl.log import ProgressBar
from ocrl.slot_world import WorldModelOutput
from ocrl.train import NonFiniteLossError


class ModelBased:
    """Trains an agent with a world model, and resumes exactly.

    Rounds of playing and learning alternate. What is learned is the world model, from windows of
    episodes, and whatever the agent's `Behaviour` learns in it. At every checkpoint all
    environments and random generators begin afresh with seeds that follow from (seed, step), and
    open episodes are broken off, whether or not the run is stopped there; the replay is part of the
    checkpoint. So a run that was killed and started again ends with the very weights of one that
    was not (on a CPU with the same number of threads).
    """

    def __init__(
        self,
        *,
        algorithm: str,
        arguments: Mapping[str, Any],
        pooling: Mapping[str, Any],
        dynamics: Mapping[str, Any],
        outcome: Mapping[str, Any],
        world: Mapping[str, Any],
        learning: Mapping[str, Any],
        replay: Mapping[str, Any],
        foretells_boxes: bool,
        match_dim: int,
        total_steps: int,
        num_envs: int,
        processes: bool,
        seed: int,
        device: str,
        log_every: int,
        checkpoint_every: int,
        evaluate_every: int,
    ) -> None:
        """Check the settings.

        Args:
            algorithm: the agent's name in tables.
            arguments: describes the `Behaviour`, see `WorldNetwork`, as for the next four.
            pooling: see there.
            dynamics: see there.
            outcome: see there.
            world: see there.
            learning: see `LearningSettings`.
            replay: see `ReplaySettings`.
            foretells_boxes: whether boxes of masks are read beside slots, see `ObservedRows`.
            match_dim: see `WorldNetwork`.
            total_steps: environment steps of the whole run, over all environments.
            num_envs: E.
            processes: one process per environment; worth it where a step takes long.
            seed: of weights, environments, actions and windows.
            device: `cpu`, `cuda` or `auto`.
            log_every: environment steps from one row of `progress.csv` to the next, at least.
            checkpoint_every: environment steps from one checkpoint to the next, at least.
            evaluate_every: environment steps from one evaluation to the next; 0 for none.

        Raises:
            ValueError: if a number is out of range, or a setting does not exist.
        """
        check_from_one(
            total_steps=total_steps,
            num_envs=num_envs,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
        )
        try:
            self.learning, self.replay = LearningSettings(**learning), ReplaySettings(**replay)
        except TypeError as error:
            raise ValueError(f"agent.learning or agent.replay: {error}") from error
        self.algorithm, self.arguments = algorithm, dict(arguments)
        self.pooling = {name: value for name, value in pooling.items() if name != "_partial_"}
        self.dynamics, self.outcome, self.world = dict(dynamics), dict(outcome), dict(world)
        self.foretells_boxes, self.match_dim = foretells_boxes, match_dim
        self.total_steps, self.num_envs, self.processes = total_steps, num_envs, processes
        self.seed, self.device = seed, device
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.evaluate_every = evaluate_every

    def network(
        self,
        *,
        plain_key: str,
        has_order: bool,
        num_geometry: int = 0,
        places: Sequence[int] = (),
    ) -> WorldNetwork:
        """What the agent is built from.

        Args:
            plain_key: name of the only part of an observation that is no `Dict`.
            has_order: whether a row stays with its object from frame to frame.
            num_geometry: the last columns of slots that tell where they are.
            places: columns of a set that are x or y of where its rows are, besides those.
        """
        return WorldNetwork(
            self.algorithm,
            self.arguments,
            self.pooling,
            self.dynamics,
            self.outcome,
            self.world,
            plain_key,
            has_order,
            0 if self.foretells_boxes else num_geometry,
            list(places),
            self.match_dim,
        )

    def train(
        self,
        env: VectorEnv[Any, Any, Any] | StableBaselinesVecEnv,
        *,
        run: AgentRun,
        network: WorldNetwork,
        evaluate: Evaluate[WorldAgent] | None = None,
        score: Score | None = None,
        encoder: EpisodeEncoder | None = None,
        world: GivenWorld | None = None,
        extra: MakePart[WorldAgent] | None = None,
    ) -> WorldAgent:
        """Train, from the run's agent if it has one.

        Args:
            env: E environments with autoreset mode `SAME_STEP`. Where their observation has the
                frame beside the slots it is remembered, and slots are made again of it when the
                encoder has changed.
            run: what and where.
            network: from `network`.
            evaluate: called every `evaluate_every` steps.
            score: of achievements, where the environment has them.
            encoder: what makes the environment's slots; None where it observes none.
            world: a world model to begin with, whose network `network` is; None for a new one.
            extra: makes a further `RunPart`, such as one that tunes the encoder.

        Raises:
            ValueError: if the run's agent has other settings, the encoder changes though frames
                are not remembered, or rollouts or a world model to begin with do not fit.
            NonFiniteLossError: if a loss is NaN or infinite; the last checkpoint stays.
            ChildProcessError: if the process of an environment ends; the last checkpoint stays.
            InterruptedTraining: if asked to stop (Ctrl-C, SIGTERM), after saving.
        """
        if isinstance(env, VectorEnv):
            env = StableBaselinesVecEnv(env)
        training = _Training(self, env, run, network, encoder, world)
        return training.to_the_end(evaluate, score, extra)

    def config(self) -> dict[str, Any]:
        """Everything that decides what is learned, in plain values; not how long or how fast."""
        return {
            "learning": vars(self.learning),
            "replay": vars(self.replay),
            "num_envs": self.num_envs,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
        }


class _Stage:
    """As much of an algorithm of Stable-Baselines3 as callbacks look at."""

    _last_obs: Any
    _last_episode_starts: NDArray[np.bool_]

    def __init__(self, env: StableBaselinesVecEnv) -> None:
        self.env = env
        self.n_envs, self.action_space = env.num_envs, env.action_space
        self.num_timesteps = 0
        self.logger = Logger(None, [])

    def set_logger(self, logger: Logger) -> None:
        self.logger = logger


class _Training(AgentTraining[WorldAgent]):
    """The state of one call of `ModelBased.train`."""

    def __init__(
        self,
        settings: ModelBased,
        env: StableBaselinesVecEnv,
        run: AgentRun,
        network: WorldNetwork,
        encoder: EpisodeEncoder | None,
        world: GivenWorld | None,
    ) -> None:
        super().__init__(settings, run)
        self.settings, self.env, self.encoder = settings, env, encoder
        self.world = world
        torch.manual_seed(settings.seed)
        self.agent = WorldAgent(env.observation_space, env.action_space, network=network)
        if world is not None:
            world.give(self.agent)
        self.agent.to(find_device(settings.device))
        self.config = {**self.agent.config(), "training": settings.config()}
        self.meta = {
            **run.meta,
            "observation_space": spaces.to_json(self.agent.rows.space),
            "action_space": spaces.to_json(env.action_space),
        }
        learning = settings.learning
        self.optimizer = torch.optim.Adam(self.agent.world.parameters(), lr=learning.learning_rate)
        self.replay = EpisodeReplay(capacity=settings.replay.capacity, seed=settings.seed)
        parts = spaces.parts(env.observation_space, plain_key=network.plain_key)
        self.has_frames = FRAME in parts
        self.memory = Memory(
            self.agent,
            self.replay,
            num_envs=env.num_envs,
            encoder=encoder,
            has_frames=self.has_frames,
            piece=settings.replay.piece,
        )
        self.stage = _Stage(env)
        self.begun_at: int | None = None
        self.num_updates = 0

    @property
    def step(self) -> int:
        return self.stage.num_timesteps

    @property
    def has_fixed_world(self) -> bool:
        """Whether the world model is a given one that stays as it is."""
        return self.world is not None and not self.world.learns

    @property
    def learns_nothing(self) -> bool:
        """Whether playing would change nothing: plans in a world model that stays as it is."""
        has_guide = self.world is not None and self.world.has_guide
        return self.has_fixed_world and (has_guide or not self.agent.behaviour.optimizers())

    def begin(self, bar: ProgressBar) -> None:
        path = self.settings.replay.rollouts
        if path is None:
            return
        number = add_rollouts(
            self.replay,
            Path(path),
            agent=self.agent,
            encoder=self.encoder,
            env=self.meta["env"],
            arguments=self.meta.get("env_arguments", {}),
            has_frames=self.has_frames,
        )
        bar.say(f"{number} episodes of {path} to begin with, {self.replay.num_steps} steps")

    # --- rounds ---------------------------------------------------------------------------------

    def learn(self, callbacks: list[BaseCallback]) -> None:
        if self.world is not None and self.learns_nothing:
            self.stage.num_timesteps = self.world.num_steps
        seen: dict[str, Any] = {}
        for callback in callbacks:
            callback.init_callback(cast(BaseAlgorithm, self.stage))
        for callback in callbacks:
            callback.on_training_start(seen, {})
        if self.learns_nothing:
            return
        observation: Any = None
        total, prefill = self.settings.total_steps, self.settings.replay.prefill_steps
        if total <= prefill:
            raise ValueError(
                f"expected agent.total_steps above agent.replay.prefill_steps={prefill}, after "
                f"which learning begins, got {total}"
            )
        while self.step < total:
            for callback in callbacks:
                callback.on_rollout_start()
            self.memory.note_encoder()
            if self.stage._last_obs is not observation:
                # The beginning, or a checkpoint: all episodes are new ones.
                self._begin(self.stage._last_obs)
            for _ in range(self.settings.learning.play_steps):
                seen["new_obs"], seen["infos"] = self._play()
                for callback in callbacks:
                    callback.on_step()
            observation = self.stage._last_obs
            self._learn()

    def _begin(self, observation: Any) -> None:
        self.memory.begin(observation)
        self.state = self.agent.initial_state(self.env.num_envs)

    def _play(self) -> tuple[Any, list[dict[str, Any]]]:
        """One step of every environment; gives the observation and the infos."""
        action = self._choose()
        observation, reward, ended, infos = self.env.step(action)
        check_finite({"reward": reward}, step=self.step)
        self.stage.num_timesteps += self.env.num_envs
        self.memory.step(action, reward, ended, infos, observation)
        self.stage._last_obs, self.stage._last_episode_starts = observation, ended
        return observation, infos

    def _choose(self) -> NDArray[Any]:
        if self.begun_at is None and self.world is None:
            return self.agent.actions.sample(self.env.num_envs)
        starts = self.stage._last_episode_starts
        action, self.state = self.agent.act(
            self.memory.parts, self.state, starts, is_deterministic=False
        )
        return action

    def _learn(self) -> None:
        """Make the updates that are due after the steps that were played."""
        settings = self.settings.learning
        if self.begun_at is None:
            is_short = self.replay.num_frames < self.agent.world.window_length
            if self.step < self.settings.replay.prefill_steps or is_short:
                return
            self.begun_at = self.step
            if self.world is None:
                self.agent.rows.measure(self.replay.frames_of(self.agent.rows.name))
                self.agent.world.outcome.expect(self.replay.num_events, self.replay.num_steps)
        since = self.step - self.begun_at
        due = settings.pretrain_updates + int(since * settings.updates_per_step)
        number, begun = due - self.num_updates, time.perf_counter()
        for _ in range(number):
            self._update()
        if number > 0:
            speed = number / (time.perf_counter() - begun)
            self.stage.logger.record_mean("speed/updates_per_second", speed)

    def _update(self) -> None:
        """One update of the world model, and one of the behaviour in it."""
        agent, settings = self.agent, self.settings.learning
        motion = {} if self.has_fixed_world else self._update_motion()
        window = self.memory.window(
            self.num_updates,
            batch_size=settings.batch_size,
            length=agent.world.window_length,
            num_surprising=settings.num_surprising,
            num_given=agent.world.num_context,
            num_eventful=settings.num_eventful,
        ).to(agent.device)
        agent.modules.train()
        rows = agent.rows(window.observation)
        world = {} if self.has_fixed_world else self._update_world(rows, window)
        try:
            figures = agent.behaviour.learn(agent.world, rows, window)
        except FloatingPointError as error:
            raise NonFiniteLossError(
                f"{error} at step {self.step}; {self.kept()}; try a lower "
                "agent.arguments.learning_rate"
            ) from error
        self.num_updates += 1
        logger = self.stage.logger
        for part, own in (("motion", motion), ("world", world), ("behaviour", figures)):
            for name, figure in own.items():
                logger.record_mean(f"{part}/{name}", figure)
        logger.record("replay/steps", self.replay.num_steps)
        logger.record_mean("replay/episodes_encoded_again", self.memory.num_encoded_again)
        logger.record("replay/updates", self.num_updates)

    def _update_motion(self) -> dict[str, float]:
        """The updates of the dynamics alone, if any; gives the losses of the last."""
        agent, learning = self.agent, self.settings.learning
        losses: dict[str, float] = {}
        for part in range(learning.motion_updates):
            window = self.memory.motions(
                self.num_updates,
                part=part,
                batch_size=learning.motion_batch,
                length=agent.world.motion_length,
                num_surprising=learning.num_surprising_motions,
            )
            if window is None:
                continue
            window = window.to(agent.device)
            agent.modules.train()
            rows = agent.rows(window.observation)
            losses = self._step_world(rows, agent.world.move(rows, window))
        return losses

    def _update_world(self, rows: Tensor, window: Window) -> dict[str, float]:
        """One step of the world model's optimiser; gives its losses and the gradient's norm."""
        num_typical = self.settings.learning.num_typical
        output = self.agent.world(rows, window, self._steps(), num_typical=num_typical)
        return self._step_world(rows, output)

    def _step_world(self, rows: Tensor, output: WorldModelOutput) -> dict[str, float]:
        """One step down what was told of rows of the last draw, whose surprise is noted."""
        world, learning = self.agent.world, self.settings.learning
        self.optimizer.zero_grad(set_to_none=True)
        output.total.backward()
        norm = clip_grad_norm_(world.parameters(), learning.clip_norm)
        if not bool(norm.isfinite()):
            raise NonFiniteLossError(
                f"the world model's loss or its gradient is not finite at step {self.step}; "
                f"{self.kept()}; try a lower agent.learning.learning_rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if learning.num_surprising:
            self.memory.note_surprise(world.surprise(rows, output.prediction))
        losses = {name: float(loss.detach()) for name, loss in output.losses.items()}
        return {**losses, "gradient_norm": float(norm)}

    def _steps(self) -> tuple[Tensor, Window] | None:
        """Steps that outcomes are learned from besides, if any, at least half of them events."""
        world, size = self.agent.world, self.settings.learning.outcome_batch
        if not size or not world.learns_outcomes:
            return None
        world.outcome.tell_odds(self.replay.num_events, self.replay.num_steps)
        window = self.memory.steps(self.num_updates, batch_size=size)
        if window is None:
            return None
        window = window.to(self.agent.device)
        return self.agent.rows(window.observation), window

    # --- saving and going on -------------------------------------------------------------------

    def save(self) -> None:
        self.memory.break_off()
        super().save()

    def counted(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "learns_nothing": self.learns_nothing}

    def resume_state(self) -> dict[str, Any]:
        behaviour = self.agent.behaviour.optimizers()
        return {
            "optimizer": self.optimizer.state_dict(),
            "behaviour": {name: own.state_dict() for name, own in behaviour.items()},
            "begun_at": self.begun_at,
            "num_updates": self.num_updates,
        }

    def restore(self, folder: Path, *, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.agent.load_weights(folder)
        self.optimizer.load_state_dict(state["optimizer"])
        for name, optimizer in self.agent.behaviour.optimizers().items():
            optimizer.load_state_dict(state["behaviour"][name])
        self.begun_at, self.num_updates = state["begun_at"], state["num_updates"]
        self.stage.num_timesteps = int(meta["step"])

    def save_replay(self, folder: Path) -> None:
        self.replay.save(folder)

    def load_replay(self, folder: Path) -> None:
        self.replay.load(folder)
