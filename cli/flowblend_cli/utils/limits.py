"""Limits of the files that are read back: sizes are looked at before anything is read.

Nobody's files come near them; what is larger isn't ours, or was made to keep a reader busy.
"""

from __future__ import annotations

_MIB = 1024 * 1024

# The document inside of a finished file.
MAX_DOCUMENT_BYTES = 16 * _MIB
# A record, a run's state, a kept recipe, the key of a review, ratings.
MAX_JSON_BYTES = 64 * _MIB
MAX_MANIFEST_BYTES = 256 * _MIB
# A clip or a picture.
MAX_FINISHED_BYTES = 4096 * _MIB
# Pixels of a finished picture, or of all frames of a clip together, that are decoded at once.
MAX_DECODED_PIXELS = 4096 * _MIB
# A stored state, or an encoded prompt.
MAX_TENSOR_BYTES = 16384 * _MIB
