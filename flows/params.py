"""Set single values of params.yaml, and leave every other byte as it is, comments included."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from flows.errors import ParamsError
from pipeline.errors import PipelineError, one_line
from pipeline.params import Params, load_yaml, nearest

PARAMS_FILE = "params.yaml"


def set_params(root: Path, assignments: Sequence[str]) -> None:
    """Set values in params.yaml.

    Parameters
    ----------
    root : Path
        The workspace.
    assignments : sequence of str
        ``key=value``: a dotted key that is there (a position, in a list), and a value in YAML.

    Raises
    ------
    ParamsError
        If an assignment is no such thing, the key is not there, a name could leave its folder, or
        the file cannot be read.
    """
    if not assignments:
        return
    path = root / PARAMS_FILE
    try:
        text = path.read_text(encoding="utf-8")
        for assignment in assignments:
            text = _assign(text, assignment)
    except (OSError, ValueError, YAMLError, RecursionError) as error:
        raise ParamsError(f"{path}: cannot be read ({one_line(error)})") from error
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        Params(part)  # names become paths and commands: looked at before DVC sees them
        part.replace(path)
    except PipelineError as error:
        raise ParamsError(str(error).replace(str(part), str(path))) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def changed_params(root: Path, assignments: Sequence[str]) -> Iterator[None]:
    """Change params.yaml while the block runs, and have it as it was afterwards."""
    path = root / PARAMS_FILE
    before = path.read_bytes() if assignments and path.exists() else None
    try:
        set_params(root, assignments)
        yield
    finally:
        if before is not None:
            path.write_bytes(before)


def _assign(text: str, assignment: str) -> str:
    """Return the text of params.yaml with one value in the place of another."""
    key, equals, value = assignment.partition("=")
    if not equals or not key or not value.strip():
        raise ParamsError(f"--set {assignment}: expected key=value, such as train.seeds=[1]")
    try:
        load_yaml(value)
    except ValueError as error:
        raise ParamsError(f"--set {assignment}: {value!r} is not a value in YAML") from error
    load_yaml(text)  # refuses what composing would only warn of
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
