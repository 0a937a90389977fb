"""What goes over the service's socket, declared once: requests, answers, events, errors, and which route has which.

From here come what the service reads and writes, `docs/openapi.json`, the client's types (`sandbox/client/answers.py`)
and those of the Node-RED package (`nodered/wire.d.ts`). Imports msgspec alone. Read `requests`, `run`, `answers`,
`events`, then `routes`.
"""
