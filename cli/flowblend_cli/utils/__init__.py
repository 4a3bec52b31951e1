"""Files, frames, processes and streams: helpers that know nothing of jobs."""
