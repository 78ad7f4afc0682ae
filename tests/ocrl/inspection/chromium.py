"""A headless Chromium that a test talks to over a pipe, in the browser's own protocol."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars", "--mute-audio"),
    *("--disable-background-networking", "--proxy-server=127.0.0.1:9", "--proxy-bypass-list="),
)


def find_browser():
    """The path of a browser, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One page; the proxy leads nowhere, so nothing can come over a network."""

    def __init__(self, profile, *, size=(1240, 1000)):
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        self.events = []
        read_end, self._out = os.pipe()
        self._in, write_end = os.pipe()
        arguments = (f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}")
        browser = find_browser()
        # The browser reads commands at descriptor 3 and answers at 4. High numbers first: one of
        # the pipes may stand at 3 or 4 itself.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (read_end, write_end)]
        with open(os.devnull, "r+b") as nothing:
            to = [(nothing.fileno(), 0), (nothing.fileno(), 1), (nothing.fileno(), 2)]
            to += [(ends[0], 3), (ends[1], 4)]
            self._process = os.posix_spawn(
                browser,
                [browser, *FLAGS, *arguments, "about:blank"],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, old, new) for old, new in to],
            )
        for end in (read_end, write_end, *ends):
            os.close(end)
        (target, *_) = [
            one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, timeout=60):
        end = time.monotonic() + timeout
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        first, self._rest = self._rest.split(b"\0", 1)
        return json.loads(first)

    def open(self, path, *, until):
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(until)

    def evaluate(self, expression):
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition, timeout=30):
        end = time.monotonic() + timeout
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            time.sleep(0.05)

    def click(self, x, y):
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def press(self, key):
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self):
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self):
        """Errors of scripts, of the console and of the network."""
        self.evaluate("0")
        kinds = ("Runtime.exceptionThrown", "Network.loadingFailed")
        logged = [e for e in self.events if e.get("method") == "Log.entryAdded"]
        errors = [e for e in logged if e["params"]["entry"]["level"] == "error"]
        return errors + [event for event in self.events if event.get("method") in kinds]

    def requests(self):
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.call("Browser.close")
        end = time.monotonic() + 10
        while os.waitpid(self._process, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(self._process, signal.SIGKILL)
            time.sleep(0.05)
        os.close(self._in)
        os.close(self._out)
