"""Build each deliberate defect into a copy of the tree and see whether a test turns red.

python -m tests.mutation [NAME…]      prints one line for each; exit status 1 if any defect survives
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.mutation.defects import DEFECTS
from tests.mutation.run import try_defect


def main() -> int:
    """Judge the defects whose name holds one of the words given, all without words."""
    parser = argparse.ArgumentParser(description="See whether the tests catch deliberate defects.")
    parser.add_argument("words", nargs="*", help="only defects whose name holds one of these")
    words = parser.parse_args().words
    chosen = [defect for defect in DEFECTS if not words or any(word in defect.name for word in words)]
    survived = 0
    for defect in chosen:
        begun_s = time.monotonic()
        caught = try_defect(defect)
        survived += not caught.red
        word = "caught" if caught.red else "SURVIVED"
        print(f"{word:<9}{time.monotonic() - begun_s:4.0f} s  {defect.name}: {caught.by}", flush=True)
    print(f"{len(chosen)} defects, {survived} survived")
    return 1 if survived or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
