"""The owner's money as seen from this machine: the local journal and what the coordinator says.

The coordinator's figures and the journal's estimates are never added to each other.
"""
