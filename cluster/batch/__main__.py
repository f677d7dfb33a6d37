"""``python -m twinpool.cluster.batch IN.jsonl OUT.jsonl``: what a Ray job runs; the same as ``twinpool batch run``."""

import sys

from twinpool.cluster.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["batch", "run"]
    main()
