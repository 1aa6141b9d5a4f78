"""The web console: the coordinator's pages for owners and consumers.

Rendered here, without a script and without anything from another host. A page reads the same views
of money as the API does, through pure functions in `views`; a form does what it does by calling the
API in this process, so that a browser passes the same gates as everybody else.
"""
