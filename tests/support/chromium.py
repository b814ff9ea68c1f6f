"""A headless Chromium that a test looks at a page with: what it lays out, what it complains of, what it would load.

It is driven over a pipe (``--remote-debugging-pipe``: JSON documents that end in NUL, on descriptors 3 and 4), so it
listens nowhere. It has no network: no name resolves, and every request is counted.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.qemu import popen_tied

PROGRAM = "chromium"
ANSWER_S = 60.0
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
)  # fmt: skip

_ON_3_AND_4 = (
    "import fcntl,os,sys;"
    "high=[fcntl.fcntl(int(one),fcntl.F_DUPFD,10) for one in sys.argv[1:3]];"
    "os.dup2(high[0],3);os.dup2(high[1],4);"
    "[os.close(one) for one in high];"
    "os.execvp(sys.argv[3],sys.argv[3:])"
)
"""Chromium reads descriptor 3 and writes descriptor 4."""


def is_there() -> bool:
    """Return whether there is a Chromium."""
    return shutil.which(PROGRAM) is not None


class Chromium:
    """One browser with one page, gone at the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asked = 0
        self._left = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """What it has told since the last page was opened."""

    def __enter__(self) -> Self:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()
        command = [sys.executable, "-I", "-S", "-c", _ON_3_AND_4, str(theirs_read), str(theirs_write), PROGRAM]
        self._process = popen_tied(
            [*command, *OPTIONS, f"--user-data-dir={self._directory / 'profile'}", "about:blank"],
            self._directory / "chromium.log",
            self._directory,
            pass_fds=(theirs_read, theirs_write),
            env={**os.environ, "HOME": str(self._directory), "XDG_CONFIG_HOME": str(self._directory)},
            start_new_session=True,
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self._read, self._write = ours_read, ours_write
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.ask(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        os.close(self._write)  # Chromium ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        os.close(self._read)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to one command of the DevTools protocol; events are kept."""
        self._asked += 1
        message: dict[str, Any] = {"id": self._asked, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for told in self._told():
            if told.get("id") == self._asked:
                assert "error" not in told, told
                return dict(told["result"])
        raise AssertionError(f"Chromium does not answer {method}")

    def open(self, page: Path, *, width: int = 1200, scheme: str = "light", media: str = "") -> None:
        """Open a file in a window of this width, with this scheme of colours and kind of medium; forget what it told."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.events = []
        self.ask("Page.navigate", url=page.as_uri())
        for _ in self._told(lambda: any(told["method"] == "Page.loadEventFired" for told in self.events)):
            pass

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; pages of ours have no script of their own."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def unroll(self) -> None:
        """Make the window as high as the page: only what is in it can be asked what lies behind."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("window.innerWidth")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        self.ask("Runtime.evaluate", expression="document.fonts.ready", awaitPromise=True)
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    @property
    def requests(self) -> list[str]:
        """What the page has asked for, itself included."""
        sent = [told for told in self.events if told["method"] == "Network.requestWillBeSent"]
        return [str(told["params"]["request"]["url"]) for told in sent]

    @property
    def complaints(self) -> list[str]:
        """Everything in the console."""
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [json.dumps(told["params"]) for told in self.events if told["method"] in kinds]

    def _told(self, enough: Any = None) -> Iterator[dict[str, Any]]:
        """Yield documents as they come, until there are enough."""
        until = time.monotonic() + ANSWER_S
        while enough is None or not enough():
            head, found, rest = self._left.partition(b"\0")
            if found:
                self._left = rest
                told = json.loads(head)
                if "method" in told:
                    self.events.append(told)
                yield told
                continue
            ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
            got = os.read(self._read, 1 << 16) if ready else b""
            assert got, f"Chromium is silent: {(self._directory / 'chromium.log').read_text(errors='replace')[-2000:]}"
            self._left += got
