"""An S3-protocol server in a process of its own: ``python -m feeding.object_store LATENCY EVERY``.

Answers come LATENCY seconds late, and one request in EVERY fails (0: none): busy, reset or cut off, in turn. Prints the
URL of the server and that of the slow, failing proxy before it; for each line on stdin, what went through the proxy.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from moto.server import ThreadedMotoServer

import flaky_s3
from flaky_s3 import Fault, FlakyS3


def main(latency: str, every: str) -> None:
    flaky_s3.LATENCY = float(latency)
    bad = itertools.cycle([Fault.BUSY, Fault.RESET, Fault.CUT])
    period = int(every)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    upstream = f"http://{host}:{port}"
    schedule = (next(bad) if period and number % period == period - 1 else Fault.SLOW for number in itertools.count())
    with FlakyS3(upstream, schedule) as proxy:
        print(json.dumps([upstream, proxy.endpoint]), flush=True)
        for _ in sys.stdin:
            failed = Counter(proxy.failures).total() - proxy.failures[Fault.SLOW]
            print(json.dumps({"requests": proxy.requests, "failed": failed, "bytes": proxy.sent}), flush=True)
    server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
