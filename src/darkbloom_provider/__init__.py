"""Darkbloom's provider: an idle Mac answers LLM requests and its owner is paid for every token."""

__version__ = "0.1.0"
