"""The environment of the stages: that of the caller, to which neither we nor Prefect add anything.

Imported first, before anything sets a variable.
"""

import os
from collections.abc import Mapping

CALLERS: Mapping[str, str] = dict(os.environ)
PREFECTS = "PREFECT_"


def environment(*, deployed: bool = False) -> dict[str, str]:
    """Return the caller's environment.

    Parameters
    ----------
    deployed : bool
        Whether a Prefect worker is the caller. It passes on settings of its own, which are left
        out.
    """
    return {
        name: value
        for name, value in CALLERS.items()
        if not (deployed and name.startswith(PREFECTS))
    }
