"""The whole path on one machine: coordinator, linked provider, consumer, money.

Sits above the daemon and the coordinator, which know nothing of each other, and puts one of each
into this process. They still meet on the wire only.
"""
