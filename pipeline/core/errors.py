"""The errors that end a stage with one clear line, which `pipeline.core.stage` prints.

PipelineError
├── ParamsError      params.yaml holds an unknown key or a wrong value
├── DownloadError    no mirror supplied a file with the pinned bytes
├── DataError        an image, label or array file is invalid
├── ModelError       a network cannot be built, or a model file cannot be read
├── TrainingError    training cannot start, or diverged
├── EvaluationError  the test set cannot be evaluated
├── ExportError      an exported model does not do what the model does
├── PictureError     a picture cannot be read, or has nothing on it
├── OutputError      a result cannot be written
└── InputsChanged    code or params were edited while a stage ran
"""


def one_line(error: BaseException) -> str:
    """Return a library's error message on one line."""
    return " ".join(str(error).split())


class PipelineError(Exception):
    """What went wrong, what was expected and received, and a remedy, in one line."""


class ParamsError(PipelineError):
    """params.yaml holds an unknown key or a wrong value."""


class DownloadError(PipelineError):
    """No mirror supplied a file with the pinned bytes."""


class DataError(PipelineError):
    """An image, label or array file is invalid."""


class ModelError(PipelineError):
    """A network cannot be built, or a model file cannot be read."""


class TrainingError(PipelineError):
    """Training cannot start, or diverged."""


class EvaluationError(PipelineError):
    """The test set cannot be evaluated."""


class ExportError(PipelineError):
    """An exported model does not do what the model does."""


class PictureError(PipelineError):
    """A picture cannot be read, or has nothing on it."""


class OutputError(PipelineError):
    """A result cannot be written."""


class InputsChanged(PipelineError):  # noqa: N818 - an event, not a fault
    """Code or params were edited while a stage ran."""
