"""``python -m dvc_flow`` is ``dvc-flow``."""

import sys

from dvc_flow.cli import main

sys.exit(main())
