"""What a person may ask of a pivot, by name: the model keeps names where the driver keeps messages."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from pivotd.core.pivot import Pivot
from pivotd.core.request import Requester
from pivotd.core.undo import Undo
from pivotd.engine.driver import Driver
from pivotd.engine.inbox import Cancel, Complete, Message, Release, SetBandwidth, TakeBack

UNDO = "01K9ABCDEFGHJKMNPQRSTVUND0"
"""The pivot that takes the first one back."""
WHO = Requester(0, 0, 1)


def message(name: str) -> Message:
    """Return the message of a request by its name."""
    match name:
        case "cancel":
            return Cancel(WHO)
        case "complete":
            return Complete(WHO)
        case "set-bandwidth":
            return SetBandwidth(WHO, bytes_per_s=1)
        case "release":
            return Release(WHO)
    return TakeBack(WHO, undo=Undo(UNDO, WHO))


def asked(driver: Driver, name: str) -> Coroutine[Any, Any, Pivot]:
    """Return the request of a person, as the service makes it."""
    match name:
        case "cancel":
            return driver.cancel(WHO)
        case "complete":
            return driver.complete(WHO)
        case "set-bandwidth":
            return driver.set_bandwidth(1, WHO)
        case "release":
            return driver.release(WHO)
    return driver.undo(Undo(UNDO, WHO))


NAMES: dict[type[Message], str] = {
    Cancel: "cancel", Complete: "complete", SetBandwidth: "set-bandwidth", Release: "release", TakeBack: "undo",
}  # fmt: skip
