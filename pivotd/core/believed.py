"""What libvirt believes of one disk, by image; core.observation has the same of a pivot. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pivotd.core.observation import JobBelief


@dataclass(frozen=True, slots=True)
class DiskBelieved:
    """The images by the definitions of the running domain and of its next boot; None: none, or none that is local."""

    live: str | None
    next: str | None
    persistent: bool
    next_has_disk: bool = True
    """Whether the definition of the next boot has the disk at all, with whatever medium."""
    job: JobBelief = JobBelief.NONE
    job_kind: str | None = None
    """``copy`` or ``active-commit``, libvirt's words."""
    mirror: str | None = None
    """The image to which the job would switch."""
    mirror_format: str | None = None
    elsewhere: bool = False
    """By the running definition it is on the network, or a volume of a pool: no name can be compared with QEMU's."""
    transient: bool = False
    """Its changes are thrown away when the guest ends."""
    shareable: bool = False
    """Other guests may write to it too."""
    removable: bool = False
    """Anybody may put another medium in."""

    def agrees(self, root: str) -> bool:
        """Return whether both name this image, the one that QEMU uses."""
        return self.live == root and (self.next == root or not self.persistent)
