"""Train an agent that sees slots, pixels or the true objects: one command.

python scripts/train_agent.py env=sprites-object_comparison obs=slots encoder.path=PATH
"""

# The launcher comes first: it sets memory and threads before torch is loaded.
from launch import choice, output_dir, script

# isort: split
from collections.abc import Mapping

import hydra
from agent_evaluation import evaluate_run, is_evaluated, settings_after_training
from observations import SLOTS, find_encoder, make_observed
from omegaconf import DictConfig
from rich.console import Console

import ocrl
from ocrl import checkpoint
from ocrl.agents import saving
from ocrl.agents.evaluation import play, summarize
from ocrl.agents.policy import PolicyAgent
from ocrl.agents.ppo import AgentRun, ModelFree
from ocrl.distributed import find_device
from ocrl.envs.crafter import crafter_score
from ocrl.log import TensorBoard


@script("agent")
def main(config: DictConfig) -> None:
    """Find or train an encoder, then train the agent; each goes on where it was stopped."""
    settings = checkpoint.plain(config)
    observation, evaluation = settings["observation"], settings["evaluation"]
    trainer: ModelFree = hydra.utils.instantiate(config.agent, _recursive_=False, _convert_="all")
    directory, env, console = output_dir(), choice("env"), Console(stderr=True, soft_wrap=True)
    if saving.trained_steps(directory) >= trainer.total_steps and is_evaluated(directory):
        console.print(f"{directory}: trained for {trainer.total_steps} steps before; nothing to do")
        return
    arguments = {name: value for name, value in settings["env"].items() if name != "_target_"}
    model, encoder = None, None
    if observation["main"] == SLOTS:
        path = find_encoder(config, env=env, directory=directory, console=console)
        model = ocrl.load(path).to(find_device(settings["encoder"]["device"]))
        encoder = saving.describe_encoder(path, directory)

    def make(num_envs: int, *, processes: bool):  # type: ignore[no-untyped-def]
        return make_observed(
            env,
            arguments=arguments,
            observation=observation,
            model=model,
            num_envs=num_envs,
            processes=processes,
        )

    def evaluate(agent: PolicyAgent, step: int, board: TensorBoard) -> Mapping[str, float]:
        apart = make(min(16, evaluation["num_episodes"]), processes=False)
        episodes = play(
            agent,
            apart,
            num_episodes=evaluation["num_episodes"],
            seed=trainer.seed,
            is_deterministic=evaluation["is_deterministic"],
        )
        apart.close()
        return summarize(episodes, score=crafter_score)["mean"]

    envs = make(trainer.num_envs, processes=trainer.processes)
    try:
        trainer.train(
            envs,
            run=AgentRun(
                directory,
                {
                    "env": env,
                    "env_arguments": arguments,
                    "observation": observation,
                    "encoder": encoder,
                },
            ),
            network=trainer.network(plain_key=observation["main"]),
            evaluate=evaluate,
            score=crafter_score,
        )
    finally:
        envs.close()
    evaluate_run(directory, say=console.print, settings=settings_after_training(evaluation))
    console.print(f"agent, progress.csv, evaluation.json, video.mp4, tensorboard: {directory}")


if __name__ == "__main__":
    main()
