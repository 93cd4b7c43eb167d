"""Topics, and the names in them.

With the protocol's version and the federation's name in front (short: every packet carries one)::

    fm4/<federation>/up/<client>          a device to the server
    fm4/<federation>/down/<client>        the server to one device
    fm4/<federation>/all                  the server to every device
    fm4/<federation>/b/<name>/<index>     a chunk of a blob, for every device that listens to it

A blob's <name> is the base64url of the first bytes of its digest. Who sent a message is what its
topic says, so a broker's access rules can keep devices apart.
"""

from __future__ import annotations

import base64
import re

from edge_runtime.protocol.messages import VERSION

_ROOT = f"fm{VERSION}"
_TOPIC_DIGEST_BYTES = 6
_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.-]{1,64}")


def valid_name(text: str) -> bool:
    """Whether a client or federation may be called so: 1 to 64 of ``A-Z a-z 0-9 _ . -``.

    Names are folders too, so dots alone are none.
    """
    return _NAME.fullmatch(text) is not None


def bad_name(what: str, text: str) -> str:
    """What to say of a name that `valid_name` refuses."""
    return (
        f"{what} name {text!r}: expected 1 to 64 letters, digits, '_', '.' or '-', not dots alone"
    )


def device_id(federation: str, client: str) -> str:
    """A device's client id at the broker; no two devices share one, nor one with the server."""
    return f"flexmoe:{federation}:{client}"


def server_id(federation: str) -> str:
    """The server's client id at the broker."""
    return f"flexmoe:{federation}"


def up_topic(federation: str, client: str) -> str:
    """Where a device speaks to the server; with ``+`` as the client, all of them."""
    return f"{_ROOT}/{federation}/up/{client}"


def down_topic(federation: str, client: str) -> str:
    """Where the server speaks to one device."""
    return f"{_ROOT}/{federation}/down/{client}"


def all_topic(federation: str) -> str:
    """Where the server speaks to every device."""
    return f"{_ROOT}/{federation}/all"


def blob_topic(federation: str, digest: bytes, index: int) -> str:
    """Where chunk `index` of a blob is."""
    name = base64.urlsafe_b64encode(digest[:_TOPIC_DIGEST_BYTES]).decode()
    return f"{_ROOT}/{federation}/b/{name}/{index}"


def all_blobs_topic(federation: str) -> str:
    """The pattern of all chunks of all blobs."""
    return f"{_ROOT}/{federation}/b/#"
