"""What a byte of a QMP command costs: QEMU reads its monitor byte by byte, so long commands make a pause longer.

python -m bench.monitor [--rounds 200]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time

from bench.qmp import Bed

PADDINGS_BYTES = (0, 100, 200, 400, 800)
REPLY_TIMEOUT_S = 30.0


def reply_us(monitor: socket.socket, command: str, padding_bytes: int = 0) -> float:
    """Return the microseconds from a command with so much white space to its answer, which one read holds."""
    begun_s = time.perf_counter()
    monitor.sendall(f'{{"execute":"{command}"{" " * padding_bytes}}}\n'.encode())
    answer = monitor.recv(1 << 16)
    if not answer.startswith(b'{"return"'):
        raise RuntimeError(f"{command}: {answer.decode()}")
    return (time.perf_counter() - begun_s) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a byte of a QMP command costs.")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with Bed.started() as bed, socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(REPLY_TIMEOUT_S)
        monitor.connect(str(bed.monitor))
        monitor.recv(1 << 16)  # the greeting
        reply_us(monitor, "qmp_capabilities")
        figures = {
            padding: statistics.median(reply_us(monitor, "query-status", padding) for _ in range(options.rounds))
            for padding in PADDINGS_BYTES
        }
    for padding, microseconds in figures.items():
        print(f"{padding:>5} bytes more: {microseconds:8.0f} us")
    most = max(PADDINGS_BYTES)
    print(f"a byte costs {(figures[most] - figures[0]) / most:.2f} us")


if __name__ == "__main__":
    main()
