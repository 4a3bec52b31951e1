"""``python -m flowblend_cli``: the same command as ``flowblend``."""

from __future__ import annotations

from flowblend_cli.main import main

main(prog_name="flowblend")
