"""What does a training step cost: ours, eager PyTorch, and the stock ExecuTorch runtime?

    python benchmarks/train_step.py [--model digits|har|cifar]... [--k 2] [--batch 32] [--json]

The same as `flexmoe bench device` (see edge_runtime/bench.py for what the columns mean).
"""

import sys

from edge_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "device", *sys.argv[1:]]))
