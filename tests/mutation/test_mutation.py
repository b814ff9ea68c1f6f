"""The judge is judged: every deliberate defect turns at least one test red.

``make mutation`` prints the table of what caught which.
"""

from __future__ import annotations

import ast
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutation.defects import DEFECTS, Defect
from tests.mutation.run import ROOT, broken, broken_copy, try_defect

SLOW = {
    "a cancel is sent before it is recorded",
    "a definition of somebody else is overwritten without a word",
    "a disk loses an internal snapshot that came after the plan",
    "a failed flush before the pause is taken for a storage that does not answer",
    "a forced pivot leaves the other disk certain",
    "a guest is resumed of which libvirt does not know the image",
    "a guest runs on behind a libvirt that hangs in the middle of the switch",
    "a guest runs on while a libvirt that hangs may still switch its disk",
    "a guest that has left by a migration is forgotten",
    "a guest under another name on an old image is no doubt",
    "a host that was frozen in its pause lets its guest run unasked",
    "a journal that fails leaves the guest paused",
    "a journal without its daemon is certain while QEMU runs",
    "a message is lost while the driver waits",
    "a migration that is about to end is not waited for",
    "a monitor that cannot be reached counts as one without a QEMU",
    "a node counts whatever file is below it",
    "a pause that cannot be recorded as pivotd's lasts",
    "a pivot is accepted for a domain that is being removed",
    "a reservation is not looked at again",
    "a restored journal is certain",
    "a resume before a `stop` without an answer is forgotten",
    "a retry with other disks passes for the same",
    "a snapshot that libvirt does not know of is left to it",
    "a stray image without a name in UTF-8 leaves no record",
    "a suspend that libvirt may still carry out is forgotten",
    "a switch that libvirt may still make is forgotten",
    "a try in which a host was frozen counts as etcd's silence",
    "a verdict is certain while its record may be on the way",
    "a word does not wait for the QEMU of its own guest",
    "a word takes an image that a guest may use that cannot be asked",
    "an event that libvirt's answer has overtaken is not waited for",
    "an image that is not there is certain",
    "an image that is there is overwritten",
    "an image that is there is taken for empty",
    "an image that is there keeps its data where the disk has none",
    "nobody can have written to a disk that is gone",
    "nodes are left behind",
    "others may load a snapshot into an image that a job fills",
    "somebody else's pause is resumed",
    "the deadline is ignored",
    "the fleet's older word counts after a pivot that has moved nothing",
    "the guest is let run without a look at its run state",
    "the journal does not flush",
    "the last look before the intent decides nothing",
    "the right image of a guest that is off is overwritten",
    "what is below the images is not noted",
}
"""Defects that take 4 s or longer: left to ``make mutation`` and ``make test-long``, like all but some of the others."""
EVERY = 6
DOCUMENT = Path(__file__).parents[2] / "docs/reliability.md"


def test_the_document_lists_every_defect():
    """With the promise it breaks and what catches it, in the same order."""
    _, part = DOCUMENT.read_text().split("| defect | promise | caught by |\n|---|---|---|\n")
    rows = [f"| {defect.name} | {defect.promise} | {defect.rung} |" for defect in DEFECTS]
    assert part.splitlines()[: part.splitlines().index("")] == rows
    assert {defect.name for defect in DEFECTS} >= SLOW


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_every_defect_can_be_built_in(defect: Defect):
    """The code that it changes is there, and what comes of it is Python."""
    ast.parse(broken(defect))


@pytest.mark.qemu
@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(one, marks=[pytest.mark.long] if one.name in SLOW or index % EVERY else [], id=one.name)
        for index, one in enumerate(DEFECTS)
    ],
)
def test_every_defect_is_caught(defect: Defect):
    """A suite that stays green with this built in would prove nothing."""
    caught = try_defect(defect)
    assert caught.red, f"{defect.name} survived: {caught.by}"


def test_a_broken_copy_never_runs_the_bytecode_of_the_sound_file(tmp_path: Path):
    """Not even where the changed file has the length and the time of the sound one; what is sound needs no compiling."""
    sound = [ROOT / f"pivotd/{name}.py" for name in ("limits", "errors")]
    for file in sound:
        py_compile.compile(str(file))
    defect = Defect("", "", "pivotd/limits.py", "STALL_S = 30.0\n", "STALL_S = 70.0\n", "", ())
    broken_copy(defect, tmp_path)
    broken = tmp_path / defect.file
    os.utime(broken, ns=(sound[0].stat().st_atime_ns, sound[0].stat().st_mtime_ns))
    assert broken.stat().st_size == sound[0].stat().st_size
    command = [sys.executable, "-v", "-c", "from pivotd import errors, limits; print(limits.STALL_S)"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "70.0\n"
    assert f"code object from '{tmp_path}/pivotd/__pycache__/errors." in done.stderr
