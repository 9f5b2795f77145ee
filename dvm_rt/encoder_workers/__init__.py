"""Encoder workers: `worker` is the process (graph -> plan, operator instance -> program), `pool` starts workers for a
scheduler that listens."""
