"""This machine: identity, hardware, load, posture, privacy, and the service that runs the provider.

Every figure is measured here and now; what cannot be measured is absent, never guessed. launchd
and the macOS tools are thin shells over pure parsers of what those tools print.
"""
