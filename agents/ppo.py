"""Model-free agents: PPO, A2C, DQN and recurrent PPO of Stable-Baselines3 through one door.

E environments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ocrl import checkpoint
from ocrl.agents import replay_store, saving, spaces
from ocrl.agents.callbacks import Checkpoints, Evaluator, Recorder, RunPart, Score
from ocrl.agents.policy import Algorithm, Network, PolicyAgent, check_actions, find_algorithm
from ocrl.agents.vector import StableBaselinesVecEnv
from ocrl.interrupt import asked_to_stop
from ocrl.log import ProgressBar, TensorBoard
from ocrl.train import NonFiniteLossError

_NUM_MEASURED = 64
"""Steps of each environment before learning."""
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate")
"""Of an algorithm, as far as it has them: what is counted on when a run goes on."""

Evaluate = Callable[[PolicyAgent, int, TensorBoard], Mapping[str, float]]
"""Figures of an agent by name, at a step; may log pictures."""


@dataclass(frozen=True)
class AgentRun:
    """What an agent is trained on, and where the run keeps its things.

    Attributes:
        directory: the run's own.
        meta: plain values that the agent's `meta.json` repeats: `env`, `env_arguments`,
            `observation`, `encoder` (None, or `path` and `hash`).
    """

    directory: Path
    meta: Mapping[str, Any]

    @property
    def agent(self) -> Path:
        """Folder of the run's agent."""
        return self.directory / saving.FOLDER


class ModelFree:
    """Trains an agent by an algorithm of Stable-Baselines3, and resumes exactly.

    At every checkpoint all environments and random generators begin afresh with seeds that follow
    from (seed, step), whether or not the run is stopped there. So a run that was killed and started
    again ends with the very weights of one that was not, whatever the environment (on a CPU with
    the same number of threads). Stopped by Ctrl-C it saves at once, between two checkpoints: the
    run goes on from there with new episodes, and nothing is lost.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        *,
        arguments: Mapping[str, Any],
        policy: Mapping[str, Any],
        pooling: Mapping[str, Any],
        vision: Mapping[str, Any],
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
            algorithm: `ppo`, `a2c`, `dqn` or `recurrent_ppo`.
            arguments: of the algorithm, by the names of Stable-Baselines3.
            policy: of its policy, likewise.
            pooling: describes what sets go through, a `Pooling`.
            vision: describes what frames go through, a `Vision`.
            total_steps: environment steps of the whole run, over all environments.
            num_envs: E.
            processes: one process per environment; worth it where a step takes long.
            seed: of weights, environments and actions.
            device: `cpu`, `cuda` or `auto`.
            log_every: environment steps from one row of `progress.csv` to the next, at least.
            checkpoint_every: environment steps from one checkpoint to the next, at least.
            evaluate_every: environment steps from one evaluation to the next; 0 for none.

        Raises:
            ValueError: if there is no such algorithm, its package is missing, or a number is too
                small.
        """
        find_algorithm(algorithm)
        small = {"total_steps": total_steps, "num_envs": num_envs, "log_every": log_every}
        for name, value in {**small, "checkpoint_every": checkpoint_every}.items():
            if value < 1:
                raise ValueError(f"expected agent.{name} to be from 1 on, got {value}")
        self.algorithm, self.arguments, self.policy = algorithm, dict(arguments), dict(policy)
        self.pooling, self.vision = _described(pooling), _described(vision)
        self.total_steps, self.num_envs, self.processes = total_steps, num_envs, processes
        self.seed, self.device = seed, device
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.evaluate_every = evaluate_every

    def network(self, *, plain_key: str, encoder: Mapping[str, Any] | None = None) -> Network:
        """What the policy is built from.

        Args:
            plain_key: name of the only part of an observation that is no `Dict`.
            encoder: describes an encoder that reads the frame and learns with the policy.

        Raises:
            ValueError: if the policy's start would undo what the encoder has learned.
        """
        if encoder is not None and self.algorithm != "dqn" and self.policy.get("ortho_init", True):
            raise ValueError(
                "expected agent.policy.ortho_init=false for an encoder in the policy, got true: "
                "it is made for layers that have not learned anything yet"
            )
        return Network(self.algorithm, self.policy, plain_key, self.pooling, self.vision, encoder)

    def build(self, env: StableBaselinesVecEnv, network: Network) -> BaseAlgorithm:
        """Build the algorithm with a fresh policy.

        Raises:
            ValueError: if the actions do not suit it, a part of the observation is of a kind that
                no policy reads, or an argument does not exist.
        """
        check_actions(self.algorithm, env.action_space)
        spaces.parts(env.observation_space, plain_key=network.plain_key)
        algorithm, policy = find_algorithm(self.algorithm)
        try:
            return algorithm(
                policy,
                env,
                policy_kwargs=network.arguments(),
                seed=self.seed,
                device=self.device,
                **self.arguments,
            )
        except TypeError as error:
            raise ValueError(f"agent.arguments or agent.policy: {error}") from error

    def train(
        self,
        env: VectorEnv[Any, Any, Any] | StableBaselinesVecEnv,
        *,
        run: AgentRun,
        network: Network,
        evaluate: Evaluate | None = None,
        score: Score | None = None,
        encoder: nn.Module | None = None,
        extra: Callable[[PolicyAgent, TensorBoard], RunPart] | None = None,
    ) -> PolicyAgent:
        """Train, from the run's agent if it has one.

        Args:
            env: E environments with autoreset mode `SAME_STEP`.
            run: what and where.
            network: from `network`.
            evaluate: called every `evaluate_every` steps.
            score: of achievements, where the environment has them.
            encoder: whose weights the policy's own encoder, see `network`, begins with.
            extra: makes a further `RunPart`, such as one that tunes the encoder.

        Raises:
            ValueError: if the run's agent has other settings, or as `build`.
            NonFiniteLossError: if a loss is NaN or infinite; the last checkpoint stays.
            ChildProcessError: if the process of an environment ends; the last checkpoint stays.
            InterruptedTraining: if asked to stop (Ctrl-C, SIGTERM), after saving.
        """
        if isinstance(env, VectorEnv):
            env = StableBaselinesVecEnv(env)
        training = _Training(self, env, run, network)
        if encoder is not None:
            training.agent.take_encoder(encoder)
        return training.to_the_end(evaluate, score, extra)

    def config(self) -> dict[str, Any]:
        """Everything that decides what is learned, in plain values; not how long or how fast."""
        return {
            "algorithm": self.algorithm,
            "arguments": self.arguments,
            "num_envs": self.num_envs,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
        }


def _described(part: Mapping[str, Any]) -> dict[str, Any]:
    """What a part is built from; that it is not complete goes without saying here."""
    return {key: value for key, value in part.items() if key != "_partial_"}


class _Training:
    """The state of one call of `ModelFree.train`."""

    def __init__(
        self,
        settings: ModelFree,
        env: StableBaselinesVecEnv,
        run: AgentRun,
        network: Network,
    ) -> None:
        self.settings, self.run = settings, run
        self.model = settings.build(env, network)
        self.agent = PolicyAgent(self.model.policy, network=network)
        self.config = {**self.agent.config(), "training": settings.config()}
        self.meta = {
            **run.meta,
            "observation_space": spaces.to_json(env.observation_space),
            "action_space": spaces.to_json(env.action_space),
        }
        self.optimizer: Optimizer = self.model.policy.optimizer
        self.optimizer.register_step_pre_hook(lambda *_: self._check_gradients())
        self.extra: RunPart | None = None

    @property
    def step(self) -> int:
        return self.model.num_timesteps

    def to_the_end(
        self,
        evaluate: Evaluate | None,
        score: Score | None,
        extra: Callable[[PolicyAgent, TensorBoard], RunPart] | None,
    ) -> PolicyAgent:
        resumed = self._resume()
        settings, directory = self.settings, self.run.directory
        if self.step >= settings.total_steps:
            return self.agent
        if resumed is None:
            self._measure_sets()
        # What a part of the run that was killed logged after this step is hidden.
        board = TensorBoard(directory / "tensorboard", start_step=self.step + 1)
        bar = ProgressBar("training", total=settings.total_steps, start=self.step)
        with board, bar, asked_to_stop() as stop:
            self.recorder = Recorder(
                directory / "progress.csv",
                board=board,
                bar=bar,
                log_every=settings.log_every,
                score=score,
            )
            self.extra = None if extra is None else extra(self.agent, board)
            self.recorder.resume(resumed and resumed["recorder"], step=self.step)
            if resumed is not None:
                bar.say(f"going on at step {self.step}")
                if self.extra is not None:
                    self.extra.resume(resumed["extra"])
            self._learn(self._callbacks(evaluate, board, bar, stop))
            self.recorder.write_row()
            self.save()
            bar.update(self.step)
            bar.say(f"trained for {self.step} steps")
        return self.agent

    def _callbacks(
        self, evaluate: Evaluate | None, board: TensorBoard, bar: ProgressBar, stop: Event
    ) -> list[BaseCallback]:
        """What happens at the end of a rollout, in this order; a checkpoint holds all of it."""
        settings = self.settings
        callbacks: list[BaseCallback] = [self.recorder]
        if self.extra is not None:
            callbacks.append(self.extra)
        if evaluate is not None:
            callbacks.append(
                Evaluator(
                    lambda step, board: evaluate(self.agent, step, board),
                    every=settings.evaluate_every,
                    board=board,
                    bar=bar,
                )
            )
        last = Checkpoints(
            self.save,
            every=settings.checkpoint_every,
            seed=settings.seed,
            stop=stop,
            where=self.run.agent,
            total_steps=settings.total_steps,
        )
        return [*callbacks, last]

    def _measure_sets(self) -> None:
        """Play at random for a while, for the scale of what the policy reads."""
        env = self.model.env
        assert env is not None
        self.model.set_random_seed(self.settings.seed)
        seen: list[Any] = [env.reset()]
        for _ in range(_NUM_MEASURED):
            actions = [self.model.action_space.sample() for _ in range(env.num_envs)]
            seen.append(env.step(np.stack(actions))[0])
        name = self.agent.network.plain_key
        named = [entry if isinstance(entry, dict) else {name: entry} for entry in seen]
        observations = {
            name: torch.from_numpy(np.concatenate([entry[name] for entry in named]))
            for name, values in named[0].items()
            if values.ndim == 3
        }
        self.agent.measure(observations)

    def _learn(self, callbacks: list[BaseCallback]) -> None:
        try:
            self.model.learn(
                self.settings.total_steps - self.step,
                callback=callbacks,
                log_interval=None,  # type: ignore[arg-type]
                reset_num_timesteps=False,
            )
        except ChildProcessError as error:
            raise ChildProcessError(
                f"{error}; {self._kept()}, and the same command goes on from there"
            ) from error
        except NonFiniteLossError:
            raise
        except ValueError as error:
            raise ValueError(f"{error}; {self._kept()}") from error

    # --- saving and going on -------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint; the previous one stays until the new one is whole."""
        with checkpoint.replacing(self.run.agent) as folder:
            added = {} if self.extra is None else self.extra.save(folder)
            meta = {"step": self.step, **self.meta, **added}
            meta["training"] = {
                "num_episodes": self.recorder.num_episodes,
                "achieved": self.recorder.achieved,
            }
            saving.write(folder, self.agent, config=self.config, meta=meta)
            (folder / "resume").mkdir()
            state = {
                "optimizer": self.optimizer.state_dict(),
                "counters": {
                    name: vars(self.model)[name] for name in _COUNTERS if name in vars(self.model)
                },
                "recorder": self.recorder.state(),
                "extra": {} if self.extra is None else self.extra.state(),
            }
            torch.save(state, folder / "resume" / "state.pt")
            if isinstance(self.model, OffPolicyAlgorithm):
                replay_store.save(self.model.replay_buffer, folder / "resume")

    def _resume(self) -> dict[str, Any] | None:
        try:
            folder = saving.find(self.run.agent)
        except FileNotFoundError:
            return None
        saving.check_same_run(folder, config=self.config, meta=self.meta)
        self.agent.load_weights(folder)
        state = checkpoint.read_state(folder / "resume" / "state.pt")
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.model).update(state["counters"])
        if isinstance(self.model, OffPolicyAlgorithm) and self.step < self.settings.total_steps:
            replay_store.load(self.model.replay_buffer, folder / "resume")
        return state

    # --- what can go wrong ---------------------------------------------------------------------

    def _kept(self) -> str:
        return saving.describe_kept(self.run.agent)

    def _check_gradients(self) -> None:
        gradients = [
            parameter.grad
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if bool(get_total_norm(gradients).isfinite()):
            return
        raise NonFiniteLossError(
            f"the policy's loss or its gradient is not finite at step {self.step}; {self._kept()}; "
            "try a lower agent.arguments.learning_rate"
        )
