"""Code for people who write programs: one sample for each thing that a key opens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """Something to copy."""

    title: str
    language: str
    code: str
    path: str
    """Of the endpoint that it asks."""


def samples(base_url: str, model: str) -> tuple[Sample, ...]:
    """The samples, for this coordinator and one of its models."""
    chat = (
        f'{{"model": "{model}", "stream": true, "messages": '
        '[{"role": "user", "content": "Hello"}]}'
    )
    return (
        Sample(
            "Ask a model",
            "shell",
            f"curl -N {base_url}/v1/chat/completions \\\n"
            '  -H "Authorization: Bearer $DARKBLOOM_KEY" \\\n'
            '  -H "Content-Type: application/json" \\\n'
            f"  -d '{chat}'",
            "/v1/chat/completions",
        ),
        Sample(
            "Ask a model, with OpenAI's client",
            "Python",
            "import os\n"
            "from openai import OpenAI\n\n"
            "client = OpenAI(\n"
            f'    base_url="{base_url}/v1",\n'
            '    api_key=os.environ["DARKBLOOM_KEY"],\n'
            ")\n"
            "reply = client.chat.completions.create(\n"
            f'    model="{model}",\n'
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            ")\n"
            "print(reply.choices[0].message.content)",
            "/v1/chat/completions",
        ),
        _get("Which models can be asked now", base_url, "/v1/models"),
        _get("What models cost", base_url, "/v1/pricing", key=False),
        _get("What is left", base_url, "/v1/payments/balance"),
        _get("What was used", base_url, "/v1/payments/usage"),
        _get("What the machines proved", base_url, "/v1/providers/attestation", key=False),
        _get("What the network did", base_url, "/v1/network/totals", key=False),
    )


def _get(title: str, base_url: str, path: str, *, key: bool = True) -> Sample:
    header = ' \\\n  -H "Authorization: Bearer $DARKBLOOM_KEY"' if key else ""
    return Sample(title, "shell", f"curl {base_url}{path}{header}", path)
