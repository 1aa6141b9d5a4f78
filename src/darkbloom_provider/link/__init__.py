"""The session with a coordinator: one outbound websocket that is kept, watched and explained.

`session` decides (events in, actions out, no IO), `reconnect` says when to dial again, `outbox`
orders what leaves, `reply` is a job's way out, `socket` is the border to the websocket library,
and `connection` and `coordinator_link` are the shell that carries the decisions out.
"""
