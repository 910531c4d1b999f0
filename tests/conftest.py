"""Settings of the whole test run."""

from __future__ import annotations

import torch

# The references run in torch, whose OpenMP regions stall for milliseconds on a busy machine; tests are small.
# Our own kernels are tested with several threads where threads matter.
torch.set_num_threads(1)
