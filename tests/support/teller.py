"""What a demonstration says: chapters, facts, and checks that count."""
# ruff: noqa: T201 - a demonstration speaks

from __future__ import annotations


class Teller:
    """Prints; ``failed`` counts the checks that did not hold."""

    def __init__(self) -> None:
        self.failed = 0

    def chapter(self, title: str) -> None:
        print(f"\n{title}")

    def tell(self, text: str) -> None:
        print(f"        {text}")

    def check(self, claim: str, held: object, seen: object = "") -> None:
        """Print one check; ``seen`` is shown if there is something to show."""
        self.failed += not held
        print(f"{'ok' if held else 'FAILED':>6}  {claim}{f': {seen}' if str(seen) else ''}", flush=True)
