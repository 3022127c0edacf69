"""Stand-in of one branch: plain and compressed blocks; the real module also knows deltas."""

import zstandard

from outpost_runtime.errors import TrustError

Buffer = bytes | bytearray | memoryview


def decode(message: Buffer, size: int, source: Buffer | None = None) -> bytes:
    """Return the plaintext of exactly ``size`` bytes that a message carries.

    Raises:
        TrustError: It carries none.
    """
    view = memoryview(message)
    if source is not None or not view or view[0] not in (0, 1):
        raise TrustError("A block has a coding that this build does not know.")
    data = bytes(view[1:])
    try:
        plain = data if view[0] == 0 else zstandard.decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise TrustError(f"A block cannot be expanded: {error}.") from error
    if len(plain) != size:
        raise TrustError(f"A block has {len(plain):,} bytes instead of {size:,}.")
    return plain
