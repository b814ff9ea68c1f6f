"""What a byte of a QMP command costs: QEMU reads its monitor byte by byte, so long commands make a pause longer.

python -m bench.monitor [--rounds 200]
"""

from __future__ import annotations

import argparse
import statistics
import time

from bench.qmp import Guest, Qmp

PADDINGS_BYTES = (0, 100, 200, 400, 800)


def reply_us(client: Qmp, padding_bytes: int, rounds: int) -> float:
    """Return the median of the microseconds from a query-status with so much white space to its answer."""
    samples = []
    for _ in range(rounds):
        begun_s = time.perf_counter()
        client.send('{"execute":"query-status"' + " " * padding_bytes + "}")
        client.answer("query-status")
        samples.append((time.perf_counter() - begun_s) * 1e6)
    return statistics.median(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a byte of a QMP command costs.")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with Guest.started() as guest:
        client = Qmp(guest.monitor)
        figures = {padding: reply_us(client, padding, options.rounds) for padding in PADDINGS_BYTES}
    for padding, microseconds in figures.items():
        print(f"{padding:>5} bytes more: {microseconds:8.0f} us")
    most = max(PADDINGS_BYTES)
    print(f"a byte costs {(figures[most] - figures[0]) / most:.2f} us")


if __name__ == "__main__":
    main()
