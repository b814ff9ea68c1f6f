"""The part of a libvirt status file that the hook reads, as libvirt 9.0 writes it; the rest of a real one is around it."""

from __future__ import annotations

from pathlib import Path

_COPY = """    <blockjob name='{name}' type='copy' state='{state}' newstate='{newstate}' jobflags='0x4'>
      <disk dst='vda' mirror='yes'/>
    </blockjob>"""
_COMMIT = """    <blockjob name='{name}' type='active-commit' state='{state}' newstate='{newstate}' jobflags='0x0'>
      <disk dst='vda' mirror='yes'/>
      <base node='{target}'/>
      <top node='{source}'/>
      <deleteCommittedImages/>
    </blockjob>"""
_TEXT = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE.
-->

<domstatus state='running' reason='booted' pid='{pid}'>
  <monitor path='{monitor}' type='unix'/>
  <nodename index='2'/>
  <blockjobs active='yes'>
    <blockjob name='backup-vdb' type='backup' state='running'>
      <disk dst='vdb'/>
    </blockjob>
{job}
  </blockjobs>
  <domain type='qemu' id='1' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>web1</name>
    <description>say &quot;mirror&quot; &lt;mirror ready='x'&gt; \N{SNOWMAN}</description>
    <devices>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2'/>
        <source file='/images/other' index='3'/>
        <target dev='vdb' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'>
        <driver name='qemu' type='qcow2' cache='none'/>
        <source file='/images/old.qcow2' index='1'>
          <privateData>
            <nodenames>
              <nodename type='storage' name='{source}-storage'/>
              <nodename type='format' name='{source}'/>
            </nodenames>
          </privateData>
        </source>
        <backingStore/>
        <mirror {mirror}>
          <format type='qcow2'/>
          <source file='/images/new.qcow2' index='2'>
            <privateData>
              <nodenames>
                <nodename type='storage' name='{target}-storage'/>
                <nodename type='format' name='{target}'/>
              </nodenames>
            </privateData>
          </source>
          <backingStore/>
        </mirror>
        <target dev='vda' bus='virtio'/>
        <privateData>
          <qom name='{device}'/>
        </privateData>
      </disk>
    </devices>
    <qemu:commandline>
      <qemu:arg value='-mon'/>
    </qemu:commandline>
  </domain>
</domstatus>
"""
NAME = "copy-vda-old"
DEVICE = "/machine/peripheral/disk0/virtio-backend"


def status_text(
    *,
    kind: str = "copy",
    state: str = "ready",
    newstate: str = "ready",
    mirror: str | None = None,
    pid: int = 4711,
    monitor: Path = Path("/monitor.sock"),
    source: str = "old",
    target: str = "new",
) -> str:
    """Return a status file of web1 with one job of its second disk, vda; ``mirror``: the attributes of its mirror."""
    files = " file='/images/new.qcow2' format='qcow2'" if kind == "copy" else ""
    job = (_COPY if kind == "copy" else _COMMIT).format(
        name=NAME, state=state, newstate=newstate, source=source, target=target
    )
    given = f"type='file'{files} job='{kind}' ready='yes'" if mirror is None else mirror
    return _TEXT.format(
        pid=pid, monitor=monitor, job=job, mirror=given, device=DEVICE, source=source, target=target
    )  # fmt: skip
