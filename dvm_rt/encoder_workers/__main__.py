"""One worker of a pool: `python -P -m dvm_rt.encoder_workers ENDPOINT PID_OF_THE_POOL`."""

from __future__ import annotations

import sys

from dvm_rt.encoder_workers.worker import main_remote

if __name__ == "__main__":
    sys.exit(main_remote(sys.argv[1], int(sys.argv[2])))
