"""Set single values of params files; every other byte stays unchanged, comments included."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from dvc_flow.errors import ParamsError, nearest, one_line
from dvc_flow.settings import check_params

PARAMS_FILE = "params.yaml"
# Not all are YAMLErrors: an empty !!int is an IndexError, a table as a key a TypeError.
YAML_ERRORS = (YAMLError, ValueError, TypeError, LookupError, RecursionError)


def set_params(
    root: Path, assignments: Sequence[str], check: str | None, environment: Mapping[str, str]
) -> None:
    """Set values in params files, and check them as the project does; an error changes nothing.

    Parameters
    ----------
    root : Path
        The workspace.
    assignments : sequence of str
        ``key=value``: an existing dotted key (a position, in a list), and a value in YAML; with
        ``file:`` before it, in another file than params.yaml.
    check : str, optional
        The project's own check, a command.
    environment : mapping
        The check's.

    Raises
    ------
    ParamsError
        If an assignment is malformed, the key does not exist, the file cannot be read, or the
        project's own check rejects the result.
    """
    before, after = _assigned(root, assignments)
    try:
        for path, content in after.items():
            _replace(path, content)
        check_params(root, check, environment)
    except ParamsError:
        for path, content in before.items():
            _replace(path, content)
        raise


def files_of(assignments: Sequence[str]) -> list[str]:
    """Return the files in which values are set, relative to the repository's root."""
    return list(dict.fromkeys(_parse(assignment)[0] for assignment in assignments))


def _parse(assignment: str) -> tuple[str, str]:
    """Return the file of an assignment, and the rest."""
    file, colon, rest = assignment.partition(":")
    is_file = colon and file.endswith((".yaml", ".yml")) and "=" not in file
    return (file, rest) if is_file else (PARAMS_FILE, assignment)


def _assigned(
    root: Path, assignments: Sequence[str]
) -> tuple[dict[Path, bytes], dict[Path, bytes]]:
    """Return the contents of the files before and after their values are set."""
    before: dict[Path, bytes] = {}
    after: dict[Path, bytes] = {}
    for assignment in assignments:
        file, value = _parse(assignment)
        path = root / file
        try:
            before.setdefault(path, path.read_bytes())
            text = after.get(path, before[path]).decode()
            after[path] = _assign(text, value, file).encode()
        except (OSError, *YAML_ERRORS) as error:
            raise ParamsError(f"{path}: cannot be read ({one_line(error)})") from error
    return before, after


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)  # as bytes, which keeps the line ends
        part.replace(path)
    except OSError as error:
        raise ParamsError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def changed_params(
    root: Path, assignments: Sequence[str], check: str | None, environment: Mapping[str, str]
) -> Iterator[None]:
    """Change params files while the block runs, and restore it afterwards."""
    before, _ = _assigned(root, assignments)
    try:
        set_params(root, assignments, check, environment)
        yield
    finally:
        for path, content in before.items():
            if path.read_bytes() != content:
                _replace(path, content)


def _assign(text: str, assignment: str, file: str) -> str:
    """Return the text of a file with one value replaced."""
    key, equals, value = assignment.partition("=")
    if not equals or not key or not value.strip():
        raise ParamsError(f"--set {assignment}: expected key=value, such as train.seeds=[1]")
    try:
        _load(value)
    except YAML_ERRORS as error:
        raise ParamsError(f"--set {assignment}: {value!r} is not a value in YAML") from error
    _load(text)  # rejects what composing would only warn of
    node: Node = YAML().compose(text)
    place = ""
    for name in key.split("."):
        children = _children(node)
        if name not in children:
            where = f"{file}: {place.strip('.') or 'the top'}"
            remedy = nearest(name, children) if children else "it is a single value"
            raise ParamsError(f"--set {assignment}: {where}: there is no {name!r}; {remedy}")
        place += f".{name}"
        begin, child = children[name]
        if child.start_mark.index < begin:
            raise ParamsError(
                f"--set {assignment}: {file}: {place.strip('.')} is an alias, and its value is "
                "another key's too; set that one, or edit the file"
            )
        node = child
    return text[: node.start_mark.index] + value.strip() + text[_end(text, node) :]


def _load(text: str) -> object:
    return YAML(typ="safe").load(text)


def _children(node: Node) -> dict[str, tuple[int, Node]]:
    """Return where each child's key begins, or the list that it is in, and the child.

    A child that begins before that stands elsewhere, and only its alias is here.
    """
    if isinstance(node, MappingNode):
        return {str(key.value): (key.start_mark.index, value) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return {str(place): (node.start_mark.index, item) for place, item in enumerate(node.value)}
    return {}


def _end(text: str, node: Node) -> int:
    """Return where a node's text ends: a block ends with its last value, not with its comments."""
    whole = node
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        begin, child = [*_children(node).values()][-1]
        if child.start_mark.index < begin:
            return _end_of_alias(text[: whole.end_mark.index])
        node = child
    return len(text[: node.end_mark.index].rstrip())


def _end_of_alias(text: str) -> int:
    """Return where the alias ends with which a text ends, but for blanks and comments."""
    lines = text.splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        lines.pop()
    line, _, _ = lines[-1].partition(" #")
    return len("".join(lines[:-1])) + len(line.rstrip())
