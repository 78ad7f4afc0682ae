"""One writer of a directory, and nothing left running behind what was stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from processes import only_writer
with only_writer(Path(sys.argv[2])):
    print("writing", flush=True)
    time.sleep(60)
"""
BEGIN = """
import sys
sys.path.insert(0, sys.argv[1])
from concurrent.futures import ThreadPoolExecutor
from processes import call, ending_all
child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
with ending_all(), ThreadPoolExecutor(2) as pool:
    begun = [pool.submit(call, [sys.executable, "-c", child], env={}) for _ in range(2)]
    try:
        [future.result() for future in begun]
    except KeyboardInterrupt:
        print([future.result() for future in begun], flush=True)
"""


def start(program, *arguments):
    command = [sys.executable, "-c", program, str(SCRIPTS), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_directory_has_one_writer(load_script, monkeypatch, tmp_path):
    only_writer = load_script("processes").only_writer
    other = start(HOLD, tmp_path)
    try:
        assert other.stdout.readline() == "writing\n"
        said = r"another process is writing into .*hydra.run.dir="
        with pytest.raises(ValueError, match=said), only_writer(tmp_path):
            pass
        # The ranks of one training write together.
        monkeypatch.setenv("RANK", "1")
        with only_writer(tmp_path):
            pass
        monkeypatch.delenv("RANK")
    finally:
        other.kill()
        other.communicate()
    for _ in range(2):
        with only_writer(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_keeps_nobody_out(load_script, monkeypatch, tmp_path):
    module = load_script("processes")

    def refuse(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with module.only_writer(tmp_path):
        pass
    monkeypatch.setattr(module, "fcntl", None)
    with module.only_writer(tmp_path):
        pass


def test_who_is_asked_to_stop_stops_what_it_began():
    parent = start(BEGIN)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGTERM)
    out, _ = parent.communicate(timeout=30)
    assert parent.returncode == 0 and out == f"{[-signal.SIGTERM] * 2}\n"
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SLOW = """
import sys
sys.path.insert(0, sys.argv[1])
from processes import call, ending_all
child = '''
import os, signal, time
def save(*_):
    time.sleep(1.5)
    os.write(1, b"saved ")
    os._exit(0)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(60)
'''
try:
    with ending_all():
        call([sys.executable, "-c", child], env={})
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_who_is_asked_to_stop_waits_until_what_it_began_has_saved():
    parent = start(SLOW)
    assert parent.stdout.readline() == "begun\n"
    parent.send_signal(signal.SIGTERM)
    out, _ = parent.communicate(timeout=30)
    assert parent.returncode == 0 and out == "saved stopped\n"


def test_what_a_command_says_goes_where_it_is_told(load_script, tmp_path):
    call = load_script("processes").call
    said = tmp_path / "log.txt"
    program = "import sys; print('out'); sys.stdout.flush(); sys.stderr.write('err'); sys.exit(3)"
    with said.open("w") as file:
        code = call([sys.executable, "-c", program], env=os.environ, output=file)
    assert code == 3 and said.read_text() == "out\nerr"
