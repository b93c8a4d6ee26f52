"""The bytes that a data: URL holds."""

import base64
import binascii

from qwen_worker.errors import BadInput


def decoded(url: str, max_bytes: int) -> bytes:
    """The bytes of a data: URL in base64.

    Args:
        url: as `qwen_worker.schema` lets it through.
        max_bytes: more are refused, before they are decoded.

    Raises:
        BadInput: it holds nothing, too much, or something else than base64.
    """
    text = url.partition(",")[2]
    if len(text) > 4 * -(-max_bytes // 3):
        raise BadInput(f"it is longer than {max_bytes} bytes: send a smaller file")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput("it is not valid base64: send the whole file, with its padding and no line breaks") from error
    if not data:
        raise BadInput("it is empty: send the whole file")
    if len(data) > max_bytes:
        raise BadInput(f"it is longer than {max_bytes} bytes: send a smaller file")
    return data
