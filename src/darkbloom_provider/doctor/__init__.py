"""Examines this machine: each fact with its evidence, what is wrong, and what to type next.

Nothing here needs a daemon, a network, or settings that can be read; nothing here can hang for
longer than its limit; and what is shown or bundled carries no secret.
"""
