"""Topics keep federations, devices and blobs apart; names are what MQTT and files can bear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.protocol.messages import DIGEST_BYTES, VERSION
from edge_runtime.protocol.topics import (
    all_blobs_topic,
    all_topic,
    bad_name,
    blob_topic,
    down_topic,
    up_topic,
    valid_name,
)
from edge_runtime.transport.memory_link import topic_matches

_ALLOWED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
_names = st.text(_ALLOWED, min_size=1, max_size=64)
_digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
_indexes = st.integers(0, 2**32)


@given(st.text(max_size=70) | st.text(_ALLOWED, max_size=70))
def test_names(text: str) -> None:
    assert valid_name(text) == (
        0 < len(text) <= 64 and set(text) <= set(_ALLOWED) and set(text) != {"."}
    )


@pytest.mark.parametrize("text", ["", "a/b", "+", "#", "*", "x" * 65, "a\n", "\u0663", "é"])
def test_what_is_no_name(text: str) -> None:
    assert not valid_name(text)
    assert repr(text) in bad_name("device", text)


def test_topics_as_the_protocol_spells_them() -> None:
    digest = bytes.fromhex("fbef00ffffff") + bytes(DIGEST_BYTES - 6)
    assert up_topic("fed", "ann") == f"fm{VERSION}/fed/up/ann"
    assert down_topic("fed", "ann") == f"fm{VERSION}/fed/down/ann"
    assert all_topic("fed") == f"fm{VERSION}/fed/all"
    assert blob_topic("fed", digest, 12) == f"fm{VERSION}/fed/b/--8A____/12"
    assert all_blobs_topic("fed") == f"fm{VERSION}/fed/b/#"


@given(_names, _names, _names, _digests, _indexes)
def test_every_topic_has_one_meaning(
    federation: str, other: str, client: str, digest: bytes, index: int
) -> None:
    topics = [
        up_topic(federation, client),
        down_topic(federation, client),
        all_topic(federation),
        blob_topic(federation, digest, index),
    ]
    assert len(set(topics)) == 4
    assert not any(wild in topic for topic in topics for wild in "+#$*")
    matches = [topic_matches(up_topic(federation, "+"), topic) for topic in topics]
    assert matches == [True, False, False, False]
    matches = [topic_matches(all_blobs_topic(federation), topic) for topic in topics]
    assert matches == [False, False, False, True]
    if other != federation:
        assert not any(topic_matches(f"fm{VERSION}/{other}/#", topic) for topic in topics)


@given(_digests, _digests, _indexes, _indexes)
def test_chunks_of_blobs_have_topics_of_their_own(
    one: bytes, other: bytes, first: int, second: int
) -> None:
    same = blob_topic("fed", one, first) == blob_topic("fed", other, second)
    assert same == (one[:6] == other[:6] and first == second)
