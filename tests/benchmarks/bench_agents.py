"""What a step of an agent costs on pixels, true objects and slots: environment, encoder, policy.

python tests/benchmarks/bench_agents.py [--quick] [--envs NAME ...] [--observations NAME ...]
    [--json PATH]

CPU milliseconds of this process for a step of one environment, while PPO with the settings of
`scripts/train_agent.py` collects rollouts and learns from them. `env` is in the environments' step,
`encoder` in the calls of the encoder (weights as drawn: what they are does not change the time),
`update` in the policy's learning, `rest` in all else: the policy's choice of actions, observations
on their way. `beside` is the total beside that of the first (the CNN on pixels). Every agent has
its own environments in this one process; rounds of the agents are interleaved, the fastest of each
counts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import hydra
import torch
from hydra import compose, initialize_config_dir
from stable_baselines3.common.callbacks import BaseCallback

from ocrl.agents.vector import StableBaselinesVecEnv
from ocrl.checkpoint import build, plain
from ocrl.envs import make_vec
from ocrl.envs.slots import SlotVectorEnv

CONFIGS = str(Path(__file__).parents[2] / "configs")
OBSERVATIONS = ("pixels", "objects", "slots", "resnet")


class Stopwatch:
    """Counts CPU seconds in a function, as a stand-in for it."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments, **named):
        start = time.process_time()
        result = self.function(*arguments, **named)
        self.seconds += time.process_time() - start
        return result


class Silent(BaseCallback):
    """Goes on."""

    def _on_step(self):
        return True


class Player:
    """An agent in its environments, with a stopwatch for each part."""

    def __init__(self, env, observation, *, num_steps):
        family = env.split("-")[0]
        options = [f"env={env}", f"obs={observation}", f"task={family}"]
        config = compose("agent", overrides=[*options, f"agent.arguments.n_steps={num_steps}"])
        arguments = {name: value for name, value in plain(config.env).items() if name != "_target_"}
        main, trainer = (
            config.observation.main,
            hydra.utils.instantiate(config.agent, _recursive_=False, _convert_="all"),
        )
        frames = make_vec(
            env,
            trainer.num_envs,
            observe=["frame" if main == "slots" else main],
            **arguments,
        )
        self.watches = {"env": Stopwatch(frames.step)}
        frames.step = self.watches["env"]
        seen = frames
        if main == "slots":
            encoder = make_encoder(env, config.env.size)
            self.watches["encoder"] = encoder.step = Stopwatch(encoder.step)
            seen = SlotVectorEnv(frames, encoder, has_geometry=config.observation.has_geometry)
        network = trainer.network(plain_key=main)
        self.model = trainer.build(StableBaselinesVecEnv(seen), network)
        self.watches["update"] = self.model.train = Stopwatch(self.model.train)
        self.steps = num_steps * trainer.num_envs

    def play(self):
        """CPU milliseconds by part, for one environment's step, over one rollout and its update."""
        for watch in self.watches.values():
            watch.seconds = 0.0
        start = time.process_time()
        self.model.learn(
            self.steps, callback=Silent(), log_interval=None, reset_num_timesteps=False
        )
        total = time.process_time() - start
        parts = {name: watch.seconds for name, watch in self.watches.items()}
        parts = {"env": 0.0, "encoder": 0.0, "update": 0.0, **parts}
        parts["rest"] = total - sum(parts.values())
        return {name: 1e3 * value / self.steps for name, value in {**parts, "all": total}.items()}


def make_encoder(env, size):
    """That of the environment's recipe of pretraining."""
    family = env.split("-")[0]
    options = [f"env={env}", f"experiment={family}", f"image_size=[{size},{size}]"]
    config = compose("pretrain", overrides=options)
    torch.manual_seed(0)
    return build(config.encoder).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--envs", nargs="+", default=["sprites-object_comparison", "crafter"])
    parser.add_argument("--observations", nargs="+", default=OBSERVATIONS[:3], choices=OBSERVATIONS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    num_steps, rounds = (64, 1) if options.quick else (128, 3)
    columns = ("env", "encoder", "update", "rest", "all")
    print(f"{'CPU ms a step':36}" + "".join(f"{name:>9}" for name in (*columns, "beside")))
    results = {}
    with initialize_config_dir(CONFIGS, version_base=None):
        for env in options.envs:
            players = {
                seen: Player(env, seen, num_steps=num_steps) for seen in options.observations
            }
            for player in players.values():
                player.play()
            best = {}
            for _ in range(rounds):
                for seen, player in players.items():
                    row = player.play()
                    best[seen] = min(best.get(seen, row), row, key=lambda row: row["all"])
            for seen, row in best.items():
                row["beside"] = row["all"] / best[options.observations[0]]["all"]
                results[f"{env}, {seen}"] = row
                values = "".join(f"{row[name]:9.3f}" for name in (*columns, "beside"))
                print(f"{env + ', ' + seen:36}{values}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
