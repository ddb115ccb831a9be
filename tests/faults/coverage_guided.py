"""Look for bytes that crash a reader, guided by coverage: atheris, which `make fuzz` installs.

``python -m tests.faults.coverage_guided READER SECONDS``; it ends with an error at the first crash,
and says how many inputs it tried.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pipeline"]):
    from pipeline.core.errors import PipelineError
    from tests.faults.readers import prepare

LONGEST_S = 10
MOST_MEMORY_MB = 4096  # of the whole process, TensorFlow included


def main(name: str, seconds: str) -> None:
    """Fuzz one reader, from its good contents on."""
    folder = Path(tempfile.mkdtemp())
    reader, good = prepare(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(good):
        (corpus / str(number)).write_bytes(content)

    def try_reader(content: bytes) -> None:
        with contextlib.suppress(PipelineError):
            reader(folder, content)

    options = [
        f"-max_total_time={seconds}",
        f"-timeout={LONGEST_S}",
        f"-rss_limit_mb={MOST_MEMORY_MB}",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_reader)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
