"""denet_program: what Ctrl-C does to a program in each part of its life, and what it does without streams to write to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from denet_torch import backends, dispatch
from training.synthetic import make_dataset

ROOT = Path(__file__).resolve().parents[1]

# A library that makes an ImportError of whatever happens within it, and is slow.
LIBRARY = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
except BaseException:
    raise ImportError("the library failed")
"""
DENET = "import denet_program; denet_program.denet()"
KILL = "os.kill(os.getpid(), signal.SIGINT)"


def program(work: str, folder: Path, before: str = "") -> tuple[int, str, str]:
    """Exit code, output and errors of a program whose work is these lines."""
    lines = "".join(f"    {line}\n" for line in work.splitlines())
    text = f"import atexit, os, signal, sys, time\nimport denet_program\ndenet_program.take()\n{before}\n"
    text += f"def work():\n{lines}\ndenet_program.run(work)\n"
    path = os.pathsep.join((str(ROOT), str(folder)))
    how = {"env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True}
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (what runs in the background ignores it)
    done = subprocess.run([sys.executable, "-c", text], preexec_fn=default, **how)
    return done.returncode, done.stdout, done.stderr


def test_before_the_work_it_is_one_line(tmp_path):
    (tmp_path / "library.py").write_text(LIBRARY)
    assert program("pass", tmp_path, before="import library") == (130, "", "stopped before anything was done\n")


@pytest.mark.parametrize(
    "work",
    [
        f"{KILL}\ntime.sleep(60)",
        "import library\ntime.sleep(60)",
        f"class Thing:\n    def __del__(self):\n        {KILL}\n        time.sleep(0.01)\nThing()\ntime.sleep(60)",
    ],
    ids=["anywhere", "in an import", "in a destructor"],
)
def test_in_the_work_it_is_told_to_whoever_can_hear(tmp_path, work):
    (tmp_path / "library.py").write_text(LIBRARY)
    assert program(work, tmp_path) == (130, "", "stopped\n")


def test_after_the_work_it_changes_nothing(tmp_path):
    late = f"def late():\n    {KILL}\n    time.sleep(0.1)\n    print('all was done')\natexit.register(late)"
    assert program("print('worked')\nreturn 3", tmp_path, before=late) == (3, "worked\nall was done\n", "")


def test_a_second_one_ends_it_there_and_then(tmp_path):
    work = f"try:\n    {KILL}\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    {KILL}\n    time.sleep(60)"
    assert program(work, tmp_path) == (130, "", "")


def test_a_child_leaves_the_word_to_its_parent(tmp_path):
    work = f"child = os.fork()\nif child == 0:\n    {KILL}\n    time.sleep(60)\n"
    work += "return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
    assert program(work, tmp_path) == (130, "", "")


@pytest.mark.parametrize(("work", "code"), [("raise ValueError('odd')", 1), ("sys.exit(2)", 2), ("return None", 0)])
def test_other_ends_are_those_of_any_program(tmp_path, work, code):
    found, said, err = program(work, tmp_path)
    assert (found, said) == (code, "") and ("ValueError: odd" in err) == (code == 1)


FULL = "error: the output of this command cannot be written (No space left on device)\n"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["help"], ["version"], ["suggest", "calls"], ["train", "--data-dir", "calls", "--out", "run"]])
def test_output_that_cannot_be_written_is_one_line(tmp_path, words):
    make_dataset(tmp_path / "calls", 8, seed=1, min_seconds=1, max_seconds=1.2)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "tools.command", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, FULL)
    with open("/dev/full", "w") as full:  # nobody can be told
        assert subprocess.run([*command[:3], "none"], env=environment, stdout=full, stderr=full).returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="the shell's way to close a stream")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(tmp_path, closed):
    make_dataset(tmp_path / "calls", 8, seed=1, min_seconds=1, max_seconds=1.2)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m tools.command conflicts calls --output found {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr
    child = f"{sys.executable} -c \"import os, sys, denet_program as p; p.take(); sys.exit(os.system('echo said'))\" {closed}"
    assert subprocess.run(child, shell=True, env=environment).returncode == 0  # what it starts has them too


def test_threads_inside_of_pytorch_do_not_make_the_end_abort(tmp_path):
    work = "for _ in range(3):\n    threading.Thread(target=multiply, daemon=True).start()\ntime.sleep(0.1)\nreturn 0"
    before = "import threading, torch\na = torch.randn(64, 64)\ndef multiply():\n    while True:\n        a @ a"
    for _ in range(2):
        assert program(work, tmp_path, before=before) == (0, "", "")


def test_where_signals_cannot_wait_as_on_windows(tmp_path):
    before = "del signal.pthread_sigmask, signal.setitimer, signal.SIGALRM, signal.SIGPIPE"
    waits = f"with denet_program.signals_wait():\n    {KILL}"
    assert program(waits, tmp_path, before) == (130, "", "stopped\n")
    assert program("raise BrokenPipeError", tmp_path, before) == (141, "", "")


@pytest.mark.parametrize("asked, wrong", [("wrong", "wrong"), ("plain, ,numba_cpu", ""), ("plain,a\nb", "a\nb")])
@pytest.mark.parametrize("words", [["-m", "tools.detect", "a.wav"], ["-m", "training.run"], ["-c", DENET, "report", "--help"]])
def test_a_wrong_backend_in_the_environment_is_one_line(tmp_path, words, asked, wrong):
    environment = os.environ | {"PYTHONPATH": str(ROOT), backends.VARIABLE: asked}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    there = ", ".join([*sorted(dispatch.BACKENDS), "plain"])
    told = f"error: DENET_BACKENDS in the environment: {wrong!r} is no backend: there are {there}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_backends_are_known_without_pytorch():
    assert {*backends.installed()} == {*dispatch.BACKENDS}
