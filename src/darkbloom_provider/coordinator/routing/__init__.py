"""Who gets a request, and why not the others. Pure but for the endpoint that explains it."""
