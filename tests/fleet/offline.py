"""pivotctl on a host whose pivotd is dead: it reads journal and configuration, and asks etcd itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cli.ctl import WITH_CONFIGURATION
from tests.support.daemon import Answer

TIMEOUT_S = 60.0


def offline(
    configuration: Path, state_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Answer:
    """Run ``pivotctl --offline`` as on a host that has this configuration at the usual place."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_CONFIGURATION, str(configuration), "--offline", str(state_dir), "--json", *arguments],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr, json.loads(done.stdout or "null"))
