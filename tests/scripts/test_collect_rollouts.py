import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ocrl.configs
from ocrl.data.store import EpisodeStore
from ocrl.envs.collect import collect

ROOT = Path(ocrl.configs.__file__).parent.parent
SCRIPT = ROOT / "scripts" / "collect_rollouts.py"
OPTIONS = ["env=sprites", "env.size=16", "env.max_steps=10", "collect.num_steps=60"]


def start(*options, folder):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *OPTIONS, *options],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def content(store):
    return {int(store.episode(i)["episode"]): store.checksums(i) for i in range(len(store))}


def test_interrupted_with_ctrl_c_it_goes_on_with_the_same_command(
    run_script, tmp_path, monkeypatch
):
    (tmp_path / "slow_agents.py").write_text(
        """
import time
from ocrl.envs.policies import RandomPolicy

class Slow(RandomPolicy):
    def __call__(self, observation):
        if not SLOW.exists():
            time.sleep(0.05)
        return super().__call__(observation)

def load(env, mark):
    global SLOW
    import pathlib
    SLOW = pathlib.Path(mark)
    return Slow(env)
"""
    )
    mark = tmp_path / "quick"
    options = [f"collect.policy=slow_agents:load:{mark}", "name=slow"]
    path = tmp_path / "outputs" / "collect_rollouts" / "slow" / "episodes"
    process = start(*options, folder=tmp_path)
    deadline = time.monotonic() + 300
    while sum(map(len, map(open_lines, path.glob("*/index.jsonl")))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, words = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in words
    last = words.strip().splitlines()[-1]
    assert last.startswith("collect_rollouts: stopped: ")
    assert "steps of 60 are safe" in last and "run the same command again" in last
    assert 0 < len(EpisodeStore(path, verify="full")) < 6

    mark.touch()
    again = [*OPTIONS, *options]
    done = run_script("collect_rollouts", *again, folder=tmp_path, path=[tmp_path])
    assert done.returncode == 0, done.stderr
    assert "6 episodes with 60 steps" in done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    straight = collect(
        "sprites",
        {"size": 16, "max_steps": 10},
        path=tmp_path / "straight",
        num_steps=60,
        policy=f"slow_agents:load:{mark}",
        num_workers=0,
        seed=0,
        episode_length=500,
        segmentation=["entities"],
        progress=False,
    )
    assert content(EpisodeStore(path)) == content(straight)


def open_lines(file):
    return file.read_bytes().splitlines()


def test_a_mistake_ends_in_one_sentence(run_script, tmp_path):
    options = [*OPTIONS, "collect.policy=scriptd"]
    done = run_script("collect_rollouts", *options, folder=tmp_path)
    words = done.stderr
    assert done.returncode == 1
    assert len(words.strip().splitlines()) == 1
    assert words.startswith("collect_rollouts: unknown policy 'scriptd' (did you mean 'scripted'?)")
    assert not list(tmp_path.rglob("shard-*"))
