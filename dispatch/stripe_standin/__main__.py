"""`python -m dispatch.stripe_standin --port P --data-dir DIR --webhook-url URL`.

Its one job: arguments and secrets from outside, then `run`. STRIPE_SECRET_KEY (sk_test_…) and
STRIPE_WEBHOOK_SECRET come from the environment. Exit codes: 0 stopped, 1 cannot serve (the port or
the folder is in use), 2 wrong usage or secrets; one line on standard error says why.
"""

import argparse
import logging
import os
import sqlite3
import sys
from pathlib import Path

from .params import origin_of
from .server import create_app, is_loopback, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dispatch.stripe_standin")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address, and no other")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True, help="where its ledger is kept")
    parser.add_argument("--webhook-url", required=True, help="who gets the events")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    if origin_of(asked.webhook_url) is None:
        parser.error("--webhook-url must be an http or https address")
    if not is_loopback(asked.host):
        parser.error("--host must be a loopback address: nobody else may reach a stand-in")
    try:
        app = create_app(
            os.environ.get("STRIPE_SECRET_KEY", ""),
            os.environ.get("STRIPE_WEBHOOK_SECRET", ""),
            asked.webhook_url,
            asked.data_dir,
        )
    except ValueError as error:
        parser.error(str(error))
    except (OSError, sqlite3.Error) as error:
        print(f"cannot use {asked.data_dir}: {error}", file=sys.stderr)
        return 1
    run(app, host=asked.host, port=asked.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
