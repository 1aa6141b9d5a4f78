"""The local socket between the command line and the daemon: one route table, one typed client.

The command line owns no state. It asks the running daemon over a Unix socket that only the owner
can reach, with the models of `control.models` at both ends.
"""
