"""The long run: composes the rooms into one provider and keeps it going until it is told to stop.

`provider` puts the real parts together, `supervisor` starts and drains them in order, `jobs`
serves requests, `facts` says what this machine is, `state` is what others may see of it.
"""
