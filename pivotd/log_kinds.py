"""Every kind of message in the log: its fixed id for journald, and its sentence. docs/log.md shows the same table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

LIST_LENGTH_MAX = 20
"""Entries of a list in a sentence; the field has all of them."""


class Kind(NamedTuple):
    """``message_id`` never changes and is never used again; ``text`` has the names of facts in braces."""

    message_id: str
    text: str


KINDS: Mapping[str, Kind] = {
    # -- the daemon
    "daemon.started": Kind(
        "ce6279ee80814eab90763896ed4f6c10",
        "pivotd {version} starts: configuration {configuration}, socket {socket}, state directory "
        "{state_dir}, journal {journal}",
    ),
    "daemon.recovered": Kind("47d568b3bc414f62a6dde8447ad65236", "every open pivot was looked at; domains: {domains}"),
    "daemon.serving": Kind(
        "98bce25386ce4138af12bf44ebb41cbb",
        "serving {socket}; domains: {domains}; QEMUs found: {qemus}; not connected: {not_connected}",
    ),
    "daemon.reloaded": Kind("b60b4c02e60440c881334d6c728f8835", "reloaded: {changed}"),
    "daemon.reload-refused": Kind("807cf5dc75b3462b8f17cdaea7cf8015", "reload refused, nothing has changed: {reason}"),
    "daemon.reload-delayed": Kind("3f0065de7144479b917b53c0f137804e", "a request to reload waits: {reason}"),
    "daemon.reload-unavailable": Kind("5b4284f10d9c42b8a6f48efe4d3c6850", "only SIGHUP reloads: {reason}"),
    "daemon.stopping": Kind(
        "0236b494dd5240668af453e6b7b59a49",
        "pivotd ends as soon as no guest is in its pause; open pivots: {open_pivots}",
    ),
    "daemon.stopped": Kind("2afa94b557cb436ba525cadb8c7d6b68", "pivotd has ended"),
    "daemon.died": Kind("d9bb4f0ce9344476b183435e30bfe2b9", "pivotd died: {error}"),
    # -- domains
    "domain.added": Kind(
        "2033c1745c4a472e86c46573215d6dea",
        "domain {domain} is supervised: {qmp} (origin: {origin}, by {who})",
    ),
    "domain.removed": Kind(
        "d89b7626a4f3465da60c53a090485b08",
        "domain {domain} is no longer supervised: {qmp} (origin: {origin}, by {who})",
    ),
    "domain.connected": Kind(
        "f3ed13d804824306883967f3439cd3d2",
        "domain {domain} is connected: QEMU {qemu}, process {pid}",
    ),
    "domain.disconnected": Kind("1b5aa43a9fd54816a6b7ce4130b30ead", "domain {domain} is not connected: {detail}"),
    "domain.skipped": Kind("9a50cb54acd44ba6840888c2affb3f90", "{qmp} is not supervised: {reason}"),
    "domain.unchecked": Kind(
        "2f886da85e3847ec9a4ee827f7e3414c",
        "the owners of monitors could not be compared: {reason}",
    ),
    "domain.failed": Kind(
        "fbb6ec04e7b54229a57ac4a5524d1cff",
        "domain {domain}: pivotd failed on what QEMU said: {error}",
    ),
    "domain.wrong-image": Kind("5ec8afff4080428f8324184b10482fa3", "{domain} {reason}; pivot {pivot}"),
    "domain.image-accepted": Kind(
        "28b33739af244a6b97e89f117b7f20ac",
        "{who} says that {image} holds the data of {domain} {disk}: {reason}; pivot {pivot}",
    ),
    "domain.image-followed": Kind(
        "6d0a4b3f8c2e4f57b1d9e7a05c3f2b18",
        "libvirt has moved {domain} {disk} to {image} for another program; pivot {pivot}",
    ),
    "domain.not-checked": Kind(
        "34b081950d0c454f93adf334d35021ba", "the images of {domain} could not be checked: {error}"
    ),
    "domain.nodes-removed": Kind(
        "efe9a9525a7f425c9cc8a8dff497042e",
        "domain {domain}: removed block nodes of pivotd's that nobody used any more, with their locks: {nodes}",
    ),
    "domain.nodes-left": Kind(
        "133ec45cc1b54d62853a637b6896289a", "unused block nodes of {domain} could not be looked for: {error}"
    ),
    "libvirt.connected": Kind("0c1d4ad0f4b54f5a9e3f6a9bb6a8c3a1", "libvirt answers: {uri}"),
    "libvirt.unreachable": Kind("5b6ff1a4c9d04d0c8ce9f1f4a3b7d2e6", "libvirt is not reached: {reason}"),
    # -- pivots
    "pivot.accepted": Kind(
        "f4a2293195ff4c2baa170d388fe67f7f",
        "{domain}: {kind} of {disks} accepted for {who}, pivot {pivot}",
    ),
    "pivot.taken-up": Kind(
        "3a82273d71104389b958d5278644dbcf",
        "{domain}: {kind} of {disks} for {who} goes on from phase {phase}, pivot {pivot}",
    ),
    "pivot.switched": Kind(
        "2fc67bcc3db94fb4bd1116a71a22ed85",
        "{domain}: switched to the new images, {disks}; pivot {pivot} for {who}",
    ),
    "pivot.merged": Kind(
        "7ccc26d9e46d43c9aede1ffd7bba6dd1",
        "{domain}: layers merged, the images stay, {disks}; pivot {pivot} for {who}",
    ),
    "pivot.kept": Kind(
        "3316b0cb199145d5a54e4e4e24b3b47b",
        "{domain}: stays on the old images, {disks}: {reason}; pivot {pivot} for {who}",
    ),
    "pivot.split": Kind(
        "fe5d5377ad1040f9b24ddfb7677ed074",
        "{domain}: each disk has an outcome of its own, {disks}: {reason}; pivot {pivot} for {who}",
    ),
    "pivot.unknown": Kind(
        "2862a4bd623042f68c447d315392d648",
        "{domain}: it is unknown which images are right, {disks}: {reason}; a person must look at "
        "`pivotctl verdict {domain}`; pivot {pivot} for {who}",
    ),
    "pivot.paused": Kind(
        "c3cadacab31a4eaeb9d5cb53edd87121",
        "{domain}: the guest was paused for {pause_ms} ms, try {attempt}, which ended in phase {ended}; pivot {pivot}",
    ),
    "pivot.gave-up": Kind(
        "b3bb57ce3863462e860ab7624f8b962b",
        "{domain}: this try did not switch, the guest goes on: {reason}; pivot {pivot}",
    ),
    "pivot.cancel-requested": Kind("e0eeab377c7648359c31f0923c496af0", "{domain}: {who} cancels pivot {pivot}"),
    "pivot.complete-requested": Kind("35c4fd1b57f141cc9e28c956f093bc7a", "{domain}: {who} completes pivot {pivot}"),
    "pivot.bandwidth-requested": Kind(
        "54b08bd8f74449ee9e3e3fa87ad19782",
        "{domain}: {who} limits the bandwidth to {bandwidth_bytes_per_s} bytes per second, 0 is no limit; "
        "pivot {pivot}",
    ),
    "pivot.release-requested": Kind(
        "d2a61424f9ee4bbfa97db40643b4c270",
        "{domain}: {who} ends the undo window of pivot {pivot}",
    ),
    "pivot.window-ended": Kind(
        "448a6dd3ae1c43d5979a7e7231cb21c2",
        "{domain}: the undo window has ended: {reason}; pivot {pivot}",
    ),
    "pivot.superseded": Kind(
        "9a2815512264498db3b52c5f6329ef88",
        "{domain}: another host has this guest, pivotd does not resume it: {reason}; pivot {pivot}",
    ),
    "pivot.guest-waits": Kind(
        "a2f7c6d1e0b94b8e9a3c5d7f1b2e4c60",
        "{domain}: the guest stays paused: {reason}; pivot {pivot}",
    ),
    "pivot.stalled": Kind(
        "3187efe0c0d04bc7be5258ce342b40fb",
        "{domain}: the copy makes no progress, it waits for {waits_for}; pivot {pivot}",
    ),
    "pivot.moving-again": Kind(
        "97ae9c82559f48f9b17f8b2961a98963",
        "{domain}: the copy makes progress again; pivot {pivot}",
    ),
    "pivot.interrupted": Kind(
        "6532cacd488a49aca32d72eb8037068b",
        "{domain}: the copy is interrupted: {reason}; pivot {pivot}",
    ),
    "pivot.went-on": Kind("8a8d4317ab5b4a6490d723462615010b", "{domain}: the interrupted copy goes on; pivot {pivot}"),
    "pivot.leftovers": Kind("a146815b7dec474192507ae009fa6019", "{domain}: QEMU did not remove {names}; pivot {pivot}"),
    "pivot.held-up": Kind(
        "22b8b62c1c0c455b98a675e83269e610",
        "{domain}: {error}; failures in a row: {in_a_row}; pivot {pivot}",
    ),
    "pivot.failed": Kind(
        "bf49ca2353644ff6a031f9401bf00d2a",
        "{domain}: {error}; failures in a row: {in_a_row}; pivot {pivot}",
    ),
    "pivot.record": Kind(
        "0c202769186b4aa4ae74ca669a8be412",
        "{domain}: record {record} in phase {phase}; pivot {pivot}",
    ),
    "qmp.trouble": Kind("9a7133261675482f83872e370552c77f", "{domain}: {error}; pivot {pivot}"),
    "destination.hangs": Kind(
        "818fe51e1daf4cdb85f57baa02cca2e2",
        "{domain}: the destination {exports} hangs, cut off: {cut}; pivot {pivot}",
    ),
    # -- the journal of pivotd, and requests
    "journal.not-written": Kind(
        "6a205ea864cf41e5a1bcecac114fa33a",
        "{domain}: nothing can be recorded, and the guest is paused: {error}; pivot {pivot}",
    ),
    "journal.lost": Kind("4b1f7c0e9a2d4e3f8c65d7a1b09e3f52", "nothing new is recorded: {error}"),
    "journal.upgraded": Kind(
        "2e705a1c4385485893779af5f2c71643",
        "{journal} has the schema of this pivotd now; {copy} is as it was before",
    ),
    "journal.moved": Kind(
        "83bef7c9c52847fbad2371c333cc7259",
        "{journal} is not the file that the last pivotd used: no verdict is certain until QEMU is seen on its image",
    ),
    "journal.not-checked": Kind(
        "6f6dfea38f244d98b280c151c0a768d4", "nobody knows whether the journal was restored: {error}"
    ),
    "journal.archived": Kind(
        "c1f0b0a5a3d24c0f9a0a8f3b6c1d7e52", "moved {pivots} pivots with {records} records to {archives}"
    ),
    "journal.not-archived": Kind("5e2b7d9c4f184a6e8d3c0b9f7a6e1d24", "old pivots stay in the journal: {error}"),
    "journal.archive-unusable": Kind("9d4c6a1f2e7b4b38a5f0e3d2c1b0a968", "an archive cannot be used: {error}"),
    "journal.writer-died": Kind("f3082f8cee8942ba9c2b7ebfd8387ae2", "the writer of the journal died: {error}"),
    "fleet.claimed": Kind(
        "fa4656aa9a8848a8a01b44c0da0379c3", "{domain}: this host, {host}, owns the guest in the fleet now"
    ),
    "fleet.released": Kind(
        "dd6fee84f94a4d9fbffa4df538fbdb34",
        "{domain}: the guest has left this host, {host}, which releases it in the fleet",
    ),
    "fleet.taken": Kind(
        "5d0c7e3b1a9f4c62b8d4e7f0a3c6951e", "{domain}: this host, {host}, has taken the guest, at the request of {who}"
    ),
    "fleet.forgotten": Kind("e1b7c9a45f2d4083a6f3d8c2b5e07419", "{domain}: the fleet has forgotten it, as {who} asked"),
    "fleet.not-usable": Kind("3a7d8f0c52b94ab8a6e0c91e57d4f2b6", "the fleet cannot be used: {error}"),
    "fleet.answers": Kind("c84b1e6d0f3f4d1b9a57e2c3d6a8b901", "the fleet answers again"),
    "fleet.not-owner": Kind("9f5a95f7701d40f59279c20bce00ab4a", "{domain}: {reason}"),
    "fleet.doubt-not-told": Kind(
        "0a403363a618493880817732246f9c07",
        "{domain} has run on another image, and the fleet does not know yet: {error}",
    ),
    "request.refused": Kind("c15aff48ea7d4b64b9406b843af62fb8", "{method} {path} of {who} refused: {reason}"),
    "request.left-out": Kind(
        "b26b9f87eb964c6088e21ed1ab9d1c13",
        "further refusals of {who} within {seconds} s that are not in the log: {left_out}",
    ),
    "request.failed": Kind("b74c851229454f18a053af73b01dc776", "pivotd failed on a request: {error}"),
    "library.message": Kind("ee875a4b41f143c987a2d924ec86c4f2", "{logger}: {message}"),
}


def sentence(name: str, facts: Mapping[str, Any]) -> str:
    """Return one line for people; of a kind without a sentence, its name and its facts."""
    kind = KINDS.get(name)
    if kind is None:
        return " ".join([name, *(f"{key}={_shown(value)}" for key, value in facts.items() if key != "exc_info")])
    return re.sub(r"{(\w+)}", lambda found: _fact(facts, found[1]), kind.text)


def _fact(facts: Mapping[str, Any], name: str) -> str:
    if name == "who" and name not in facts:
        return who(facts)
    return _shown(facts[name]) if facts.get(name) is not None else "-"


def who(facts: Mapping[str, Any]) -> str:
    """Return who asked, for people: the name of the user where it is known."""
    uid, user = facts.get("uid"), facts.get("user")
    if uid is None:
        return "pivotd"
    return f"uid {uid}" if user is None else f"{_shown(user)} (uid {uid})"


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        more = [f"and {len(value) - LIST_LENGTH_MAX} more"] if len(value) > LIST_LENGTH_MAX else []
        return ", ".join([_shown(one) for one in value[:LIST_LENGTH_MAX]] + more) or "none"
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode()
