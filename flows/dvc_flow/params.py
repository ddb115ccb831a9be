"""Set single values of params.yaml; every other byte stays unchanged, comments included."""

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
    """Set values in params.yaml, and check it as the project does; on an error it is unchanged.

    Parameters
    ----------
    root : Path
        The workspace.
    assignments : sequence of str
        ``key=value``: an existing dotted key (a position, in a list), and a value in YAML.
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
    path = root / PARAMS_FILE
    if assignments:
        try:
            before = path.read_bytes()
            text = before.decode()
            for assignment in assignments:
                text = _assign(text, assignment)
        except (OSError, *YAML_ERRORS) as error:
            raise ParamsError(f"{path}: cannot be read ({one_line(error)})") from error
        _replace(path, text.encode())
    try:
        check_params(root, check, environment)
    except ParamsError:
        if assignments:
            _replace(path, before)
        raise


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
    """Change params.yaml while the block runs, and restore it afterwards."""
    path = root / PARAMS_FILE
    before = path.read_bytes() if assignments and path.exists() else None
    try:
        set_params(root, assignments, check, environment)
        yield
    finally:
        if before is not None:
            path.write_bytes(before)


def _assign(text: str, assignment: str) -> str:
    """Return the text of params.yaml with one value replaced."""
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
            where = f"{PARAMS_FILE}: {place.strip('.') or 'the top'}"
            remedy = nearest(name, children) if children else "it is a single value"
            raise ParamsError(f"--set {assignment}: {where}: there is no {name!r}; {remedy}")
        node = children[name]
        place += f".{name}"
    return text[: node.start_mark.index] + value.strip() + text[_end(text, node) :]


def _load(text: str) -> object:
    return YAML(typ="safe").load(text)


def _children(node: Node) -> dict[str, Node]:
    if isinstance(node, MappingNode):
        return {str(key.value): value for key, value in node.value}
    if isinstance(node, SequenceNode):
        return {str(position): value for position, value in enumerate(node.value)}
    return {}


def _end(text: str, node: Node) -> int:
    """Return where a node's text ends: a block ends with its last value, not with its comments."""
    while isinstance(node, MappingNode | SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return len(text[: node.end_mark.index].rstrip())
