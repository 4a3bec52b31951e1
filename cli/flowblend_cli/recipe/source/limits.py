"""Limits: how large a recipe may be. The error of whatever exceeds one names it."""

from __future__ import annotations

MIB = 1024 * 1024

# Bytes of a recipe, all that it includes counted.
MAX_RECIPE_BYTES = 4 * MIB
# Files that a recipe includes, directly and through others.
MAX_INCLUDED = 32
# Files that include each other one after another, the recipe itself not counted.
MAX_INCLUDE_DEPTH = 8
# Jobs of one recipe, and tables [[scene]].
MAX_JOBS = 100_000
# Characters of one prompt with everything put in.
MAX_PROMPT = 10_000
# Bytes and lines of a file of wildcards or prompts.
MAX_TEXT_BYTES = 4 * MIB
MAX_TEXT_LINES = 100_000
# Bytes of a file of wildcards in YAML or JSON.
MAX_STRUCTURED_BYTES = MIB // 2
# Braces inside one another in a prompt.
MAX_BRACES = 16
# Files of wildcards inside one another.
MAX_WILDCARD_DEPTH = 5
# Prompts that are drawn of a scene.
MAX_SAMPLE = 50_000
# Keys, and entries of lists, of one file.
MAX_VALUES = 300_000
# Problems that are shown.
MAX_PROBLEMS = 100
