"""The owner's account at a coordinator: REST client, device login and where the token is kept.

Exceptions of httpx and keyring end here: callers meet only errors of `darkbloom_provider.errors`.
"""
