"""What the last commits touched, for checks that take too long to look at everything each time."""

import re
import subprocess

COMMITS = 5
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def recently_changed(root):
    """The files that the last commits touched; None where there is no history to ask."""
    asked = subprocess.run(["git", "log", f"-{COMMITS}", "--name-only", "--format="], capture_output=True, text=True,
                           cwd=root)
    if asked.returncode != 0:
        return None
    return {root / name for name in asked.stdout.splitlines()}


def includes_of(path, root):
    """The headers of the project that a file includes itself."""
    return {root / name for name in INCLUDE.findall(path.read_text(errors="replace"))}
