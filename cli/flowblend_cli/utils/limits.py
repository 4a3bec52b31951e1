"""Limits of the files that are read back: sizes are looked at before anything is read.

Nobody's files come near them; what is larger isn't ours, or was made to keep a reader busy. How
large a recipe may be stands in ``recipe.source.limits``.
"""

from __future__ import annotations

MIB = 1024 * 1024

# The document inside of a finished file.
MAX_DOCUMENT_BYTES = 16 * MIB
# A record, a run's state, a kept recipe, the key of a review, ratings.
MAX_JSON_BYTES = 16 * MIB
MAX_MANIFEST_BYTES = 256 * MIB
# A JSON file of a model's that nothing here looks into, such as a tokenizer's words.
MAX_TOKENIZER_BYTES = 128 * MIB
# Levels of lists and objects inside one another in JSON.
MAX_JSON_DEPTH = 64
# Digits of a whole number in JSON; tokenizers' configs say "no limit" with 31.
MAX_DIGITS = 40
# A clip or a picture.
MAX_FINISHED_BYTES = 4096 * MIB
# Frames of a clip.
MAX_FRAMES = 100_000
# Pixels of all frames of a clip together, that are decoded at once.
MAX_DECODED_PIXELS = 4096 * MIB
# A stored state, or an encoded prompt.
MAX_TENSOR_BYTES = 16384 * MIB
