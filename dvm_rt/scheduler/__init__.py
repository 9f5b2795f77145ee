"""The scheduler, from the inside out: `events` (what it is told, what it orders), `book` (who holds which instance),
`seats` (who sits where, restarts), `graphs`, `watch` (how long somebody may take), `policy` (who encodes), `limits`,
`state` (the decisions: a pure state machine over all of these), `shell` (does what it orders), `remote` (workers that connect)
and `loop` (the asyncio thread)."""
