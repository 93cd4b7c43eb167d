"""Running `ip` and `tc` of iproute2: batches of commands, and questions answered in JSON."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from edge_runtime.errors import EmulationError

Tool = Literal["ip", "tc"]
NAMESPACES = Path("/var/run/netns")
"""Where iproute2 keeps its named network namespaces."""
TIMEOUT_S = 60.0
_FAILED_LINE = re.compile(r"^Command failed -:(\d+)$", re.MULTILINE)


class CommandError(EmulationError):
    """One command failed; `reason` is what the tool said."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"`{command}` failed: {reason}")
        self.reason = reason


def run_batch(tool: Tool, lines: Sequence[str], namespace: str = "") -> None:
    """Run the commands of `lines` in one process, in the named `namespace` if one is given.

    `CommandError` names the first that fails; those after it do not run.
    """
    if not lines:
        return
    arguments = [*_command(tool, namespace), "-batch", "-"]
    done = _run(arguments, "".join(f"{line}\n" for line in lines))
    if done.returncode != 0:
        found = _FAILED_LINE.search(done.stderr)
        command = lines[int(found[1]) - 1] if found else f"-batch of {len(lines)} commands"
        raise CommandError(f"{tool} {command}", _reason(done.stderr))


def ask(tool: Tool, arguments: Sequence[str], namespace: str = "") -> list[dict[str, Any]]:
    """What the tool answers in JSON; `CommandError` if it fails or answers otherwise."""
    command = [*_command(tool, namespace), "-j", *arguments]
    done = _run(command, "")
    if done.returncode != 0:
        raise CommandError(" ".join(command), _reason(done.stderr))
    try:
        answer = json.loads(done.stdout or "[]")
    except ValueError:
        answer = None
    if not isinstance(answer, list):
        raise CommandError(" ".join(command), "expected JSON; iproute2 5.0 or newer is needed")
    # Objects of another kind than was asked for come out empty.
    return [entry for entry in answer if entry]


def _command(tool: Tool, namespace: str) -> list[str]:
    return [tool, "-n", namespace] if namespace else [tool]


def _run(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except OSError as error:
        raise EmulationError(
            f"cannot run `{command[0]}` ({error.strerror}); links are shaped with `ip` and `tc`: "
            "install iproute2, or put its folder (often /usr/sbin) into PATH"
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandError(" ".join(command), f"no answer in {TIMEOUT_S:g} s") from None


def _reason(stderr: str) -> str:
    """The tool's own words in one line."""
    said = [line for line in stderr.splitlines() if line and not _FAILED_LINE.match(line)]
    return "; ".join(said) or "it does not say why"
