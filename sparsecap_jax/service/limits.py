"""Bounds of what a service takes in, and the answer to a request that exceeds them."""

import dataclasses
from typing import Annotated

from sparsecap_jax.settings import Range


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one request, of all that are worked on, and of batches.

    Attributes:
        max_bytes: most bytes of a body.
        max_pixels: most pixels of a photo.
        max_regions: most regions of an image that is given as features.
        max_rows: most beams or samples of an image, times the states of words that it requires
            (2 for one word, 4 for two).
        max_requests: requests worked on at a time, from their headers to their answers.
        max_connections: open connections, those at rest among them; requests on further ones are
            turned away.
        upload_seconds: time in which headers have to arrive, and again for the body.
        seconds: time from the whole body to the answer.
        max_batch: most images of a batch.
        max_wait_ms: longest time that an image waits for others to join its batch.
        decoders: threads that turn photos into features; 0 for one for each core.
    """

    max_bytes: Annotated[int, Range(1, 2**30)] = 10_000_000
    max_pixels: Annotated[int, Range(1, 178_956_970)] = 50_000_000
    max_regions: Annotated[int, Range(1, 10_000)] = 200
    max_rows: Annotated[int, Range(1, 1000)] = 32
    max_requests: Annotated[int, Range(1, 10_000)] = 64
    max_connections: Annotated[int, Range(1, 100_000)] = 1000
    upload_seconds: Annotated[float, Range(0, 3600, open_low=True)] = 10.0
    seconds: Annotated[float, Range(0, 3600, open_low=True)] = 10.0
    max_batch: Annotated[int, Range(1, 1024)] = 16
    max_wait_ms: Annotated[float, Range(0, 10_000)] = 5.0
    decoders: Annotated[int, Range(0, 1024)] = 0


REASONS = {
    "bad_option": (422, "a search option is unknown, out of range, or does not fit the others"),
    "bad_photo": (422, "the body is no photo, or a damaged one"),
    "bad_features": (422, "the body is no object of features that the model can take"),
    "too_many_bytes": (413, "the body is too large"),
    "too_many_pixels": (413, "the photo has too many pixels"),
    "too_many_regions": (413, "the features have too many regions"),
    "unknown_type": (415, "Content-Type is neither an image nor JSON"),
    "incomplete_body": (400, "the connection ended before the body"),
    "slow_upload": (408, "the body did not arrive in time"),
    "busy": (429, "as many requests as allowed are worked on"),
    "timeout": (503, "the caption was not ready in time"),
    "fault": (500, "a fault of the service, which is in its log"),
    "not_found": (404, "there is no such page"),
    "wrong_method": (405, "the page has no such method"),
}
"""Status and meaning of each `reason` of an answer that is no caption."""


class Refused(Exception):
    """A request that is answered by a reason instead of a caption.

    Args:
        reason: a key of `REASONS`.
        message: one sentence for the client, without anything of this machine.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
        self.status = REASONS[reason][0]
