#!/usr/bin/python3
"""Send a mail about each pivot, with the local sendmail.

mail.py ADDRESS...
"""

import json
import subprocess
import sys
from email.message import EmailMessage
from typing import Any


def letter(pivot: dict[str, Any], addresses: list[str]) -> EmailMessage:
    """Return the mail on one pivot; the same pivot always gives the same Message-ID."""
    said = [
        f"{disk['disk']}: {disk['outcome']}, {disk['image'] or 'nobody knows the image'}" for disk in pivot["disks"]
    ]
    message = EmailMessage()
    message["To"] = ", ".join(addresses)
    message["Subject"] = f"{pivot['domain']}: {pivot['kind']} of {len(said)} disk(s): {pivot['outcome']}"
    message["Message-ID"] = f"<{pivot['id']}@pivotd.invalid>"
    lines = [
        *said,
        "",
        f"reason:   {pivot['reason'] or '-'}",
        f"decided:  {pivot['decided']}",
        f"asked by: uid {pivot['requested_by']['uid']}",
        f"pivot:    {pivot['id']}",
    ]
    if pivot["outcome"] in {"unknown", "split"}:
        lines += ["", f"A person must look: pivotctl verdict {pivot['domain']}"]
    # A name of a file may hold what is no text.
    message.set_content("\n".join(lines).encode(errors="backslashreplace").decode() + "\n")
    return message


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: mail.py ADDRESS...")
    mail = letter(json.load(sys.stdin), sys.argv[1:])
    sys.exit(subprocess.run(["sendmail", "-i", "-t"], input=bytes(mail), check=False).returncode)
