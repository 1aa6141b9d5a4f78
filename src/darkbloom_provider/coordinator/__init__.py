"""The embedded coordinator: a whole small network in one process.

Websocket hub, OpenAI and Anthropic APIs, accounts, ledger, payouts and leaderboard on SQLite. It
speaks the existing network's protocol, so a provider daemon cannot tell the difference, and it
meets the daemon on the wire only.
"""
