"""What consumers ask for: the three dialects, read from foreign JSON into one request.

Requests are read leniently where the network rewrites them (key order, `8192.0` for `8192`) and
strictly where a mistake would be served wrong: a value out of range is refused by its parameter's
name, and so is what a provider does not serve. Parameters nobody knows are ignored and counted.
"""
