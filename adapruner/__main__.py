"""``python -m adapruner``: the same as the command ``adapruner``."""

import sys

from adapruner.cli.main import main

sys.exit(main())
