from __future__ import annotations

import subprocess
import sys

import pytest

from darkbloom_provider.engine.parsers import calls
from darkbloom_provider.engine.parsers.choice import PLAIN, choose
from darkbloom_provider.engine.parsers.tagged import GEMMA_THOUGHT, THINK


@pytest.mark.parametrize(
    ("template", "vocabulary", "form", "thinking"),
    [
        ("", set(), None, None),
        ("{{ '<tool_call>\\n<function=' }}", {"<think>", "</think>"}, calls.QWEN, THINK),
        ("<tool_call> tool_call.name </think> <think>", set(), calls.QWEN, THINK),
        ("<minimax:tool_call>", {"<think>", "</think>"}, calls.MINIMAX, THINK),
        ("<|tool_call> <tool_call|>", {"<|channel>", "<channel|>"}, calls.GEMMA4, GEMMA_THOUGHT),
        ("<start_function_call>", {"<start_of_turn>"}, calls.FUNCTION_GEMMA, None),
        ("{{ bos }}", {"<start_of_turn>"}, calls.TOOL_CODE, None),
        ("", {"<|python_tag|>"}, calls.LLAMA, None),
        ("", {"<|tool_call_start|>", "<|tool_call_end|>"}, calls.PYTHONIC, None),
        ("<tool_call> <arg_key>", {"<tool_call>", "</tool_call>"}, None, None),
        ("split('</think>')", {"<think>", "</think>"}, None, THINK),
    ],
)
def test_template_and_vocabulary_tell_the_family(
    template: str, vocabulary: set[str], form: object, thinking: object
) -> None:
    factory = choose(template, vocabulary.__contains__)
    assert (factory.calls, factory.thinking) == (form, thinking)
    assert factory.calls_tools == (form is not None)


def test_channels_are_told_by_their_tokens() -> None:
    factory = choose("", {"<|channel|>", "<|message|>", "<|start|>"}.__contains__)
    assert factory.channels
    assert factory.calls_tools


def test_thoughts_are_open_if_the_prompt_ends_in_their_marker_only() -> None:
    factory = choose("", {"<think>", "</think>"}.__contains__)
    assert factory.thinking_open("<|im_start|>assistant\n<think>\n")
    assert not factory.thinking_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not factory.thinking_open("what does <think> mean?<|im_start|>assistant\n")
    assert not PLAIN.thinking_open("<think>")


def test_parsers_load_no_mlx() -> None:
    code = (
        "import sys; import darkbloom_provider.engine.parsers.choice; "
        "print([name for name in sys.modules if name.split('.')[0] in ('mlx', 'mlx_lm')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"
