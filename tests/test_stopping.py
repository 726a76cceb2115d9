"""Signals: what is begun is finished, and the program says why it ended."""

import contextlib
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from sparsecap_jax import stopping

REPO = pathlib.Path(__file__).parents[1]
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_loop_stops_between_two_items(number, code, capsys):
    done = []
    with pytest.raises(stopping.Stopped) as stopped, stopping.on_signals():
        for item in stopping.between(range(5)):
            if item == 2:
                send(number)
            done.append(item)
    assert (done, stopped.value.code) == ([0, 1, 2], code)
    line = f"stopped by {number.name}; run the same command to continue\n"
    assert capsys.readouterr() == ("", line)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert stopping.received() is None


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_where_nothing_is_kept_it_stops_at_once(number, code, capsys):
    with pytest.raises(stopping.Stopped) as stopped, stopping.on_signals():
        send(number)
        pytest.fail("went on")
    assert (str(stopped.value), stopped.value.code) == (f"stopped by {number.name}", code)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_callback_swallows_is_not_forgotten():
    class Callback:
        def __del__(self):
            send(signal.SIGINT)  # what is raised here is printed and ignored

    with pytest.raises(stopping.Stopped), stopping.on_signals():
        callback = Callback()
        del callback
        assert stopping.received() is signal.SIGINT
        with stopping.deferred():
            pytest.fail("went on")
    gc.collect()


def test_a_signal_in_the_last_part_of_a_loop_is_not_forgotten():
    def items():
        yield 1
        send(signal.SIGTERM)  # after the last item

    advice = "^stopped by SIGTERM; run the same command to continue$"
    with pytest.raises(stopping.Stopped, match=advice), stopping.on_signals():
        for _ in stopping.between(items()):
            pass
        pytest.fail("went on")


def test_a_signal_that_a_callback_swallows_is_raised_again():
    script = (
        "import os, signal, time; from sparsecap_jax.commands.cli import run_main\n"
        "class Callback:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "def main(words):\n"
        "    callback = Callback()\n"
        "    del callback\n"
        "    time.sleep(60)\n"
        "run_main(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")


class ExtensionFileLoader:
    """Named like the one of importlib, whose frames are on the stack while a module loads."""

    def exec_module(self):
        send(signal.SIGINT)
        return "loaded"


def test_loading_a_compiled_module_is_not_interrupted():
    """It aborts the process for an exception in its midst."""
    with pytest.raises(stopping.Stopped), stopping.on_signals():
        loaded = ExtensionFileLoader().exec_module()
        time.sleep(30)
        pytest.fail("went on")
    assert loaded == "loaded"


def test_signals_that_are_ignored_stay_ignored():
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.on_signals():
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number, code):
    script = (
        "import time; from sparsecap_jax import stopping\n"
        "with stopping.on_signals(), stopping.deferred():\n"
        "    print('ready', flush=True)\n"
        "    while not stopping.received(): time.sleep(0.01)\n"
        "    print('received', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in process.stdout:
            process.send_signal(number)
    assert process.returncode == -number


def test_a_block_within_a_block_forgets_nothing():
    with pytest.raises(stopping.Stopped), stopping.on_signals(), stopping.deferred():
        send(signal.SIGTERM)
        with stopping.on_signals():
            pass
        stopping.check()
        pytest.fail("went on")


def test_an_alarm_of_the_user_is_kept():
    rung = []
    usual = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        for signalled in (False, True):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with contextlib.suppress(stopping.Stopped), stopping.on_signals():
                if signalled:
                    with stopping.deferred():
                        send(signal.SIGTERM)
                        stopping.again()
            assert stopping.received() is None and signal.getitimer(signal.ITIMER_REAL)[0] > 0
            time.sleep(0.7)
            assert rung.pop()
    finally:
        signal.signal(signal.SIGALRM, usual)


WORKER = """
import multiprocessing, os, time
from sparsecap_jax import stopping

def work():
    stopping.follow_parent()
    print(os.getpid(), flush=True)
    time.sleep(0.5)
    print("working", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(60)
"""


def test_worker_processes_leave_signals_to_their_parent_and_end_with_it(tmp_path):
    (tmp_path / "main.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "main.py")]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        worker = int(process.stdout.readline())
        for number, _ in SIGNALS:
            os.kill(worker, number)
        assert process.stdout.readline() == b"working\n"
        process.kill()
        assert process.communicate(timeout=20)[0] == b""  # nobody has it open any more
