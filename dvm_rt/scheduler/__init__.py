"""The scheduler: `events` (what it is told, what it orders), `policy` (who encodes), `state` (the pure state machine),
`loop` (the asyncio shell around it)."""
