#!/usr/bin/python3
"""POST each pivot as JSON to a URL.

    webhook.py URL

The Idempotency-Key is the id of the pivot: it is the same when the pivot comes again. An answer other than 2xx, or none
within 20 s, is a failure. A redirection is one too: it would turn the POST into a GET.
"""

import json
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 20


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves a redirection as it is: an error."""

    def redirect_request(self, *_: object) -> None:
        """Return no other request."""


def main(url: str) -> None:
    """Read the pivot and post it."""
    body = sys.stdin.buffer.read()
    headers = {"Content-Type": "application/json", "Idempotency-Key": json.loads(body)["id"]}
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        urllib.request.build_opener(NoRedirect).open(request, timeout=TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].startswith(("http://", "https://")):
        sys.exit("usage: webhook.py URL")
    main(sys.argv[1])
