import os
import signal
import threading

import pytest

from ocrl.interrupt import asked_to_stop


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted(kind):
    before = signal.getsignal(kind)
    with asked_to_stop() as event:
        assert not event.is_set()
        os.kill(os.getpid(), kind)
        assert event.wait(1.0)
    assert signal.getsignal(kind) is before


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as event:
        os.kill(os.getpid(), signal.SIGINT)
        assert event.wait(1.0)
        os.kill(os.getpid(), signal.SIGINT)
        event.wait(1.0)


def test_other_threads_have_an_event_that_is_never_set():
    seen = []

    def work():
        with asked_to_stop() as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
