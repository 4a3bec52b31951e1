"""RunOptions: what a run may do and when it stops; no option changes a pixel."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """What a run may do, and when it is to stop.

    Args:
        fail_fast: End the batch with the first job that fails, instead of going on without it.
        max_jobs: Stop cleanly once so many jobs were rendered; None for all of them.
        max_time_s: Stop cleanly before so many seconds have passed; None for no limit.
        checkpoint_every: Store a job's state after every so many steps; 0 never does.
        verify: Hash the bytes of every finished file, of large ones too.
        allow_download: Fetch models that the recipe names and this machine lacks.
        executor: ``"child"`` renders in processes of their own, whose death costs one try of one
            job; ``"in-process"`` in a thread of this one; ``"ray"`` on a cluster.
        address: The cluster that ``"ray"`` renders on, as Ray writes it; empty for one that is
            started on this machine, and ended with the run.
        workers: Workers of a cluster, at most; 0 for as many as it has room for, or grows to have.
            There are never more than jobs.
        gpus_per_worker: GPUs of each of them; None for one where the cluster has any.
        job_timeout_s: Seconds after which a job that tells of no step is taken from its worker,
            which is ended, at least ten minutes while models are loaded; None waits for ever.
        allow_mixed_devices: Let workers render on devices that differ from the first one's.
        devices: A worker process for each of these, see ``utils.devices``; empty for one
            process that uses what the recipe says.
        encode: Who makes files of frames: ``"driver"``, this process, or ``"worker"``, whoever
            renders; the files are the same, and this process checks and names them.
        stop_patience_s: Seconds that a step may take to end once the run stops; an executor that
            takes longer is ended, and its jobs remain.
    """

    fail_fast: bool = False
    max_jobs: int | None = None
    max_time_s: float | None = None
    checkpoint_every: int = 0
    verify: bool = False
    allow_download: bool = False
    executor: str = "in-process"
    devices: str = ""
    address: str = ""
    workers: int = 0
    gpus_per_worker: float | None = None
    job_timeout_s: float | None = None
    allow_mixed_devices: bool = False
    encode: str = "driver"
    stop_patience_s: float = 3600.0


def usual_executor() -> str:
    """Where the command renders unless told: in a process of its own, or as the environment says.

    ``FLOWBLEND_ISOLATE=0`` stands for ``in-process``.
    """
    return "in-process" if os.environ.get("FLOWBLEND_ISOLATE") == "0" else "child"
