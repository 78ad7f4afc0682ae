"""Model-free agents: PPO, A2C, DQN and recurrent PPO of Stable-Baselines3 through one door.

E environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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

from ocrl.agents import replay_store, spaces
from ocrl.agents.callbacks import EntropyFall, Score
from ocrl.agents.policy import Algorithm, Network, PolicyAgent, check_actions, find_algorithm
from ocrl.agents.run import AgentRun, AgentTraining, Evaluate, MakePart, check_from_one
from ocrl.agents.vector import StableBaselinesVecEnv, StateVecEnv
from ocrl.log import ProgressBar
from ocrl.train import NonFiniteLossError

_NUM_MEASURED = 64
"""Steps of each environment before learning."""
_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_n_calls", "exploration_rate")
"""Of an algorithm, as far as it has them: what is counted on when a run goes on."""


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
        match_dim: int,
        whitening: float | None,
        hides_empty: bool,
        final_fraction: float,
        fall_begins: float,
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
            match_dim: products of what is seen with the vectors beside it, see `Features`.
            whitening: of slots, see `Whitening.ridge`; None for none.
            hides_empty: pass over slots that win no cell of the picture, where geometry tells them.
            final_fraction: of the learning rate and of the entropy's weight, which fall in a line,
                at the end of the run.
            fall_begins: the share of the run after which they do.
            total_steps: environment steps of the whole run, over all environments.
            num_envs: E.
            processes: one process per environment; worth it where a step takes long.
            seed: of weights, environments and actions.
            device: `cpu`, `cuda` or `auto`.
            log_every: environment steps from one row of `progress.csv` to the next, at least.
            checkpoint_every: environment steps from one checkpoint to the next, at least.
            evaluate_every: environment steps from one evaluation to the next; 0 for none.

        Raises:
            ValueError: if there is no such algorithm, its package is missing, a number is too
                small, or a learning rate is to fall and there is none.
        """
        find_algorithm(algorithm)
        check_from_one(
            total_steps=total_steps,
            num_envs=num_envs,
            log_every=log_every,
            checkpoint_every=checkpoint_every,
        )
        if not 0 <= final_fraction <= 1:
            raise ValueError(f"expected agent.final_fraction in [0,1], got {final_fraction}")
        if not 0 <= fall_begins < 1:
            raise ValueError(f"expected agent.fall_begins in [0,1), got {fall_begins}")
        if final_fraction < 1 and "learning_rate" not in arguments:
            raise ValueError(
                f"expected agent.arguments.learning_rate, from which to fall to {final_fraction} "
                "of it, got none: name it, or set agent.final_fraction=1"
            )
        self.algorithm, self.arguments, self.policy = algorithm, dict(arguments), dict(policy)
        self.final_fraction, self.fall_begins = final_fraction, fall_begins
        if match_dim < 0:
            raise ValueError(f"expected agent.match_dim of at least 0, got {match_dim}")
        self.pooling, self.vision = _described(pooling), _described(vision)
        if whitening is not None and whitening <= 0:
            raise ValueError(f"expected agent.whitening above 0, or null for none, got {whitening}")
        self.match_dim, self.whitening, self.hides_empty = match_dim, whitening, hides_empty
        self.total_steps, self.num_envs, self.processes = total_steps, num_envs, processes
        self.seed, self.device = seed, device
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.evaluate_every = evaluate_every

    def network(
        self,
        *,
        plain_key: str,
        num_geometry: int = 0,
        encoder: Mapping[str, Any] | None = None,
    ) -> Network:
        """What the policy is built from.

        Args:
            plain_key: name of the only part of an observation that is no `Dict`.
            num_geometry: the last columns of slots that tell where they are.
            encoder: describes an encoder that reads the frame and learns with the policy.

        Raises:
            ValueError: if the policy's start would undo what the encoder has learned.
        """
        if encoder is not None and self.algorithm != "dqn" and self.policy.get("ortho_init", True):
            raise ValueError(
                "expected agent.policy.ortho_init=false for an encoder in the policy, got true: "
                "it is made for layers that have not learned anything yet"
            )
        return Network(
            self.algorithm,
            self.policy,
            plain_key,
            self.pooling,
            self.vision,
            self.match_dim,
            encoder,
            self.whitening,
            self.hides_empty,
            num_geometry,
        )

    def build(self, env: StableBaselinesVecEnv, network: Network) -> BaseAlgorithm:
        """Build the algorithm with a fresh policy.

        Where its encoder has a memory, that encoder streams through the environments, so that the
        policy can go on from its states.

        Raises:
            ValueError: if the actions do not suit it, a part of the observation is of a kind that
                no policy reads, an argument does not exist, or as `EncoderState`.
        """
        check_actions(self.algorithm, env.action_space)
        spaces.parts(env.observation_space, plain_key=network.plain_key)
        algorithm, policy = find_algorithm(self.algorithm)
        states = network.states()
        seen = env if states is None else StateVecEnv(env, states)
        arguments = dict(self.arguments)
        if self.final_fraction < 1:
            arguments["learning_rate"] = self.falling(arguments["learning_rate"])
        try:
            model = algorithm(
                policy,
                seen,
                policy_kwargs=network.arguments(),
                seed=self.seed,
                device=self.device,
                **arguments,
            )
        except TypeError as error:
            raise ValueError(f"agent.arguments or agent.policy: {error}") from error
        own = PolicyAgent(model.policy, network=network).features.states
        if isinstance(seen, StateVecEnv) and own is not None:
            seen.states = own
        return model

    def train(
        self,
        env: VectorEnv[Any, Any, Any] | StableBaselinesVecEnv,
        *,
        run: AgentRun,
        network: Network,
        evaluate: Evaluate[PolicyAgent] | None = None,
        score: Score | None = None,
        encoder: nn.Module | None = None,
        extra: MakePart[PolicyAgent] | None = None,
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

    def falling(self, value: float) -> Fall:
        """A learning rate or weight over the run."""
        return Fall(value, value * self.final_fraction, self.fall_begins)

    def config(self) -> dict[str, Any]:
        """Everything that decides what is learned, in plain values; not how long or how fast."""
        return {
            "algorithm": self.algorithm,
            "arguments": self.arguments,
            "final_fraction": self.final_fraction,
            "fall_begins": self.fall_begins,
            "num_envs": self.num_envs,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
        }


@dataclass(frozen=True)
class Fall:
    """A number that stays as it is for a share of a run, `begins`, and then falls in a line.

    Stable-Baselines3 calls it with the share of the run that is left.
    """

    first: float
    last: float
    begins: float

    def __call__(self, progress_remaining: float) -> float:
        """The number now."""
        fallen = (1.0 - progress_remaining - self.begins) / (1.0 - self.begins)
        return self.first + min(max(fallen, 0.0), 1.0) * (self.last - self.first)


def _described(part: Mapping[str, Any]) -> dict[str, Any]:
    """What a part is built from; that it is not complete goes without saying here."""
    return {key: value for key, value in part.items() if key != "_partial_"}


class _Training(AgentTraining[PolicyAgent]):
    """The state of one call of `ModelFree.train`."""

    def __init__(
        self,
        settings: ModelFree,
        env: StableBaselinesVecEnv,
        run: AgentRun,
        network: Network,
    ) -> None:
        super().__init__(settings, run)
        self.settings = settings
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

    @property
    def step(self) -> int:
        return self.model.num_timesteps

    def begin(self, bar: ProgressBar) -> None:
        self._measure_sets()

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

    def learn(self, callbacks: list[BaseCallback]) -> None:
        fraction, total_steps = self.settings.final_fraction, self.settings.total_steps
        weight = self.settings.arguments.get("ent_coef", 0.0)
        if fraction < 1 and weight > 0:
            schedule = self.settings.falling(weight)
            callbacks = [EntropyFall(schedule, total_steps=total_steps), *callbacks]
        self.model.learn(
            total_steps - self.step,
            callback=callbacks,
            log_interval=None,  # type: ignore[arg-type]
            reset_num_timesteps=False,
        )

    def resume_state(self) -> dict[str, Any]:
        counters = {name: vars(self.model)[name] for name in _COUNTERS if name in vars(self.model)}
        return {"optimizer": self.optimizer.state_dict(), "counters": counters}

    def restore(self, folder: Path, *, state: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.agent.load_weights(folder)
        self.optimizer.load_state_dict(state["optimizer"])
        vars(self.model).update(state["counters"])
        wanted = self.settings.total_steps
        planned = meta["training"].get("total_steps", wanted)
        if self.settings.final_fraction < 1 and planned != wanted:
            self.remark = (
                f"the learning rate and the entropy's weight, which were to reach their end after "
                f"{planned} steps, go on as in a run of {wanted}: what comes of it is neither"
            )

    def counted(self) -> dict[str, Any]:
        return {"total_steps": self.settings.total_steps}

    def save_replay(self, folder: Path) -> None:
        if isinstance(self.model, OffPolicyAlgorithm):
            replay_store.save(self.model.replay_buffer, folder)

    def load_replay(self, folder: Path) -> None:
        if isinstance(self.model, OffPolicyAlgorithm):
            replay_store.load(self.model.replay_buffer, folder)

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
            f"the policy's loss or its gradient is not finite at step {self.step}; {self.kept()}; "
            "try a lower agent.arguments.learning_rate"
        )
