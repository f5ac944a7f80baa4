"""``python -m adapruner``: the same as the command ``adapruner``."""

import sys

from adapruner.cli import main

sys.exit(main())
