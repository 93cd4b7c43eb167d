"""`ControlTree`: folders and files that behave like the kernel's control groups, as far as we use
them; every write is kept, in order."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from device_profiles.emulation import control_files, sweep

PROCS, ENABLED = "cgroup.procs", "cgroup.subtree_control"


class ControlTree:
    """A tree at `root`. `template` is what a new group holds, by the name of the file.

    `refuses`: writes that fail, by the name of the file and the text ("" for any text).
    """

    def __init__(
        self, root: Path, patch: pytest.MonkeyPatch, template: Mapping[str, str], top: str = ""
    ) -> None:
        self.root = root
        self.template = dict(template)
        self.refuses: dict[tuple[str, str], int] = {}
        self.writes: list[tuple[str, str]] = []
        self._rmdir = os.rmdir
        root.mkdir()
        self._fill(root)
        (root / top).touch() if top else None
        patch.setattr(control_files, "write", self.write)
        patch.setattr(control_files, "make", self.make)
        patch.setattr(sweep, "_write", self._try_to_write)
        patch.setattr(os, "rmdir", self._remove)

    def make(self, folder: Path) -> None:
        folder.mkdir()
        self._fill(folder)

    def read(self, path: str) -> str:
        return (self.root / path).read_text().strip()

    def write(self, path: Path, text: str) -> None:
        self.writes.append((str(path.relative_to(self.root)), text))
        if not path.exists():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        for word in (text, ""):
            if number := self.refuses.get((path.name, word)):
                raise OSError(number, os.strerror(number), str(path))
        group = path.parent
        if path.name == ENABLED:
            self._enable(group, text)
        elif path.name == PROCS:
            self._move(text, group)
        elif path.name == "cgroup.kill":
            for file in group.rglob(PROCS):
                file.write_text("")
        else:
            path.write_text(text)

    def _fill(self, folder: Path) -> None:
        for name, text in self.template.items():
            (folder / name).write_text(text)

    def _try_to_write(self, path: Path, text: str) -> None:
        if path.exists():
            self.write(path, text)

    def _enable(self, group: Path, text: str) -> None:
        """Not while there are processes in it, but for the root of all."""
        if text[0] == "+" and (group / PROCS).read_text() and (group / "cgroup.type").exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        words = set((group / ENABLED).read_text().split()) - {text[1:]}
        words |= {text[1:]} if text[0] == "+" else set()
        (group / ENABLED).write_text(" ".join(sorted(words)))

    def _move(self, pid: str, group: Path) -> None:
        """Not into a group with controllers below it."""
        if (group / ENABLED).read_text() and (group / "cgroup.type").exists():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for file in self.root.rglob(PROCS):
            file.write_text("".join(f"{p}\n" for p in file.read_text().split() if p != pid))
        (group / PROCS).write_text(f"{(group / PROCS).read_text()}{pid}\n")

    def _remove(self, folder: Path) -> None:
        """A group goes with its files, but not with its processes."""
        if self.root in Path(folder).parents:
            if (Path(folder) / PROCS).exists() and (Path(folder) / PROCS).read_text():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))
            for file in Path(folder).iterdir():
                if file.is_file():
                    file.unlink()
        self._rmdir(folder)
