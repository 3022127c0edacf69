"""Making a block of an older one and a delta, as the device does it. Pure.

What comes out is the very block that could have been fetched: it is encrypted again, and its
digest is the release's. So nobody needs to trust a delta.
"""

import hashlib

from outpost_runtime.errors import TrustError
from outpost_runtime.update.coding import Buffer, decode, encode_plain
from outpost_runtime.update.encryption import seal, unseal
from outpost_runtime.update.release import Block


def make_block(
    delta_stored: Buffer, source_stored: Buffer, block: Block, content_key: bytes
) -> bytes:
    """Return the stored bytes of a block.

    Args:
        delta_stored: The delta, as it was fetched.
        source_stored: The block that it starts from, as it lies in the store.
        block: What it must make.
        content_key: Key of the family that all three belong to.

    Raises:
        TrustError: They do not make that block.
    """
    # Blocks of tensors are plain, and so is what a delta starts from: its size is its own.
    message = unseal(source_stored, content_key)
    source = decode(message, len(message) - 1)
    data = decode(unseal(delta_stored, content_key), block.size, source)
    stored = seal(encode_plain(data), content_key)
    if hashlib.sha256(stored).hexdigest() != block.id:
        raise TrustError(
            f"A delta makes another block than {block.id[:12]}.",
            hint="Fetch the block itself, and tell the publisher.",
        )
    return stored
