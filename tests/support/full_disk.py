"""Small disks for tests: mounted in a namespace of their own, which ends with the process."""

from __future__ import annotations

import shutil
import subprocess

import pytest

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
"""Start of a command that may mount."""
needs_namespace = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="a small disk needs a mount namespace",
)
