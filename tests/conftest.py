"""Settings of the whole suite."""

from __future__ import annotations

import torch

# The networks of the tests are too small for more threads to help, and waiting ones slow each other
# down on a busy machine. Tests that are about threads set their own.
torch.set_num_threads(1)
