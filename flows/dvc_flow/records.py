"""What a run writes besides outputs, as ``dvc repro`` would have left it.

DVC parses and writes the whole of a dvc.lock for each stage. Here the stages that have finished
since the last time are written in one go, and a file that nobody else has touched is not parsed
again. DVC keeps existing entries of dvc.lock and .gitignore files, and appends new ones as stages
finish. Stages that run in parallel finish in a different order each time; what they append is put
in the order of the plan.
"""

import io
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.stage.serialize import to_lockfile
from dvc.utils import relpath
from dvc.utils.serialize import parse_yaml_for_update
from dvc.utils.serialize._yaml import _dump

from dvc_flow.repository import Node, lock_of

if TYPE_CHECKING:
    from dvc.stage import Stage

EVERY_S = 1.0


class Records:
    """The lock and .gitignore files of a run. The repository is held during each call.

    Parameters
    ----------
    nodes : sequence of Node
        In the order of the plan.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.locks: dict[str, _Lock] = {}
        self.ignored: dict[Path, _Ignored] = {}
        self.waiting: dict[Stage, str] = {}
        self.since = 0.0
        for node in nodes:
            if node.stage is not None:
                self._take(node.stage)

    def _take(self, stage: "Stage") -> None:
        path = lock_of(stage)
        if path is not None:
            self.locks.setdefault(path, _Lock(path, stage)).planned.append(stage.name)
        for out in stage.outs:
            if out.use_cache and out.protocol == "local":
                file = Path(out.fs_path).with_name(".gitignore")
                entry = b"/" + Path(out.fs_path).name.encode()
                self.ignored.setdefault(file, _Ignored(file)).planned.append(entry)

    @property
    def is_due(self) -> bool:
        """Whether a stage has waited for long enough."""
        return bool(self.waiting) and time.monotonic() - self.since >= EVERY_S

    def add(self, stage: "Stage") -> None:
        """Take a stage that has finished, to be written soon."""
        path = lock_of(stage)
        if path is None:
            stage.dump(update_pipeline=False)
            return
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting[stage] = path
        if self.is_due:
            self.write()

    def require(self, stages: "Sequence[Stage]") -> None:
        """Write now if one of some stages is not written yet."""
        if not self.waiting.keys().isdisjoint(stages):
            self.write()

    def write(self) -> None:
        """Write the stages that wait."""
        for path in set(self.waiting.values()):
            stages = [stage for stage, lock in self.waiting.items() if lock == path]
            self.locks[path].write(stages)
            for stage in stages:
                del self.waiting[stage]

    def finish(self) -> None:
        """Write all, and put the new lines of .gitignore files in the order of the plan."""
        self.write()
        for ignored in self.ignored.values():
            ignored.restore_order()


class _Lock:
    """A dvc.lock file."""

    def __init__(self, path: str, stage: "Stage") -> None:
        self.path = Path(path)
        self.before = list(stage.dvcfile.lockfile_contents.get("stages", {}))
        self.planned: list[str] = []
        self.text: str | None = None  # as last written here
        self.data: Any = None
        self.own: dict[str, Any] = {}  # the entries of this run
        self.last = ""  # of them, in the order of the plan

    def write(self, stages: "Sequence[Stage]") -> None:
        """Do what DVC's Lockfile.dump_stages does, with new entries in the order of the plan."""
        self._load()
        entries = self.data["stages"] = self.data.get("stages", {})
        for stage in stages:
            # A copy: values that two stages share would be written as an anchor and an alias.
            entry = deepcopy(to_lockfile(stage))
            if entries.get(stage.name) != entry[stage.name]:
                stage.repo.scm_context.track_file(relpath(self.path))
            self.own.update(entry)
            entries[stage.name] = _reread(entry)
        # DVC reads all entries again but the one that it writes last. That is no detail: of several
        # blanks at which a long command is folded, reading leaves one.
        last = max(self.own, key=self.planned.index)
        if self.last and self.last != last:
            entries[self.last] = _reread({self.last: self.own[self.last]})
        self.last, entries[last] = last, self.own[last]
        rank = {name: n for n, name in enumerate(dict.fromkeys([*self.before, *self.planned]))}
        wanted = sorted(entries, key=lambda name: rank.get(name, len(rank)))
        if list(entries) != wanted:
            self.data["stages"] = {name: entries[name] for name in wanted}
        self._dump()

    def _load(self) -> None:
        text = None
        with suppress(FileNotFoundError):
            text = self.path.read_text(encoding="utf-8")
        if self.data is None or text != self.text:
            self.data = parse_yaml_for_update(text, str(self.path)) if text else {}
        if not self.data:
            self.data = {"schema": "2.0"}

    def _dump(self) -> None:
        stream = io.StringIO()
        _dump(self.data, stream)
        self.text = stream.getvalue()
        target = self.path.resolve()  # it may be a link
        part = target.with_name(f"{target.name}.part")
        try:
            part.write_text(self.text, encoding="utf-8")
            with suppress(FileNotFoundError):
                shutil.copymode(target, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def _reread(entry: dict[str, Any]) -> Any:
    """Return a stage's entry as it is read from a lock file."""
    stream = io.StringIO()
    _dump({"stages": entry}, stream)
    (value,) = parse_yaml_for_update(stream.getvalue(), "")["stages"].values()
    return value


class _Ignored:
    """A .gitignore file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = path.read_bytes() if path.is_file() else b""
        self.planned: list[bytes] = []

    def restore_order(self) -> None:
        """Put the lines that DVC appended in the order of the plan."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        head = self.before + (b"\n" if self.before and not self.before.endswith(b"\n") else b"")
        if not content.startswith(head):
            return  # edited meanwhile
        appended = content[len(head) :].splitlines(keepends=True)
        rank = {entry: n for n, entry in enumerate(dict.fromkeys(self.planned))}
        wanted = sorted(appended, key=lambda line: rank.get(line.rstrip(b"\r\n"), len(rank)))
        if appended != wanted:
            self.path.write_bytes(head + b"".join(wanted))
