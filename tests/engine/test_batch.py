"""The batch, step by step, in this thread: every phase can be met exactly."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from darkbloom_provider.engine.errors import (
    EngineError,
    GenerationFailedError,
    InvalidGenerationError,
)
from darkbloom_provider.engine.loading import Weights, load_steps
from darkbloom_provider.engine.prompt import decoder
from darkbloom_provider.engine.prompt_cache import PromptCache
from darkbloom_provider.engine.requests import GenerationRequest, Usage
from darkbloom_provider.engine.updates import Finished
from support.batch_run import PHASES, SETTINGS, Run, alone, ask, reach, weights_of
from support.tiny_model import CONTEXT_LENGTH


@pytest.fixture(scope="module")
def weights(tiny_model: Path) -> Weights:
    return weights_of(load_steps(tiny_model, step_bytes=100_000))


class Interfering:
    """A model with something in front of it."""

    def __init__(self, model: Any, before: Callable[[Any], None]) -> None:
        self._model = model
        self._before = before

    def __call__(self, tokens: Any, **options: Any) -> Any:
        self._before(tokens)
        return self._model(tokens, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


LONG = "the stone and the river " * 12
PROMPTS = [
    ask("hello"),
    ask(LONG, 20),
    ask("a", 40),
    ask("water", 1),
    ask("naïve 🦊", 25),
    ask(LONG[5:60], 10),
]


# ---------------------------------------------------------------- the same text as alone


def test_mixed_requests_in_a_batch_get_the_text_they_would_get_alone(weights: Weights) -> None:
    run = Run(weights)
    for key, request in enumerate(PROMPTS):
        run.add(key, request)
    outcomes = run.to_the_end()
    for key, request in enumerate(PROMPTS):
        expected = alone(weights, request)
        assert outcomes[key].text == expected.text
        assert expected.finished is not None
        assert outcomes[key].finished == replace(expected.finished, key=key)
        assert outcomes[key].counts == list(range(1, (request.max_tokens or 0) + 1))


def test_requests_that_join_between_steps_change_nobodys_text(weights: Weights) -> None:
    run = Run(weights)
    for key, request in enumerate(PROMPTS):
        run.add(key, request)
        run.step(3)
    outcomes = run.to_the_end()
    assert [outcomes[key].text for key in range(len(PROMPTS))] == [
        alone(weights, request).text for request in PROMPTS
    ]


def test_a_seed_gives_the_same_text_in_any_company(weights: Weights) -> None:
    seeded = ask("hello", temperature=1.2, top_p=0.95, top_k=50, min_p=0.01, seed=11)
    run = Run(weights)
    run.add(0, ask("water", temperature=0.9))
    run.step(5)
    run.add(1, seeded)
    run.add(2, replace(seeded, seed=12))
    outcomes = run.to_the_end()
    assert outcomes[1].text == alone(weights, seeded).text
    assert outcomes[1].text != outcomes[2].text


def test_sixteen_seeds_say_the_same_alone_together_and_from_the_cache(weights: Weights) -> None:
    """Drawn numbers are the same to the bit; logits differ in their last digits in company, so that
    a token may differ where two are equally likely to six digits: one in a few hundred thousand."""
    texts = ("a", "water", "the stone and the river " * 9, "give light " * 20)
    options: tuple[dict[str, Any], ...] = (
        {"temperature": 0.7},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 40, "min_p": 0.02},
        {"temperature": 0.9, "presence_penalty": 0.5, "logprobs": 2},
    )
    requests = [
        ask(text, 12 + number, seed=number, ignore_eos=True, **option)
        for number, (text, option) in enumerate(itertools.product(texts, options))
    ]
    expected = [alone(weights, request).text for request in requests]
    assert len(set(expected)) == len(requests)
    run = Run(weights, replace(SETTINGS, max_running=16), cache=PromptCache(10**8))
    for turn in (0, 100):
        for key, request in enumerate(requests):
            run.add(turn + key, request)
            run.step(key % 3)
        outcomes = run.to_the_end()
        assert [outcomes[turn + key].text for key in range(len(requests))] == expected
    assert run.cache is not None
    assert run.cache.hit_tokens > 500


def test_a_repetition_penalty_changes_only_its_own_request(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask(max_tokens=120))
    run.add(1, ask(max_tokens=120, repetition_penalty=9.0))
    outcomes = run.to_the_end()
    assert outcomes[0].text == alone(weights, ask(max_tokens=120)).text
    assert outcomes[1].text != outcomes[0].text


@pytest.mark.parametrize(
    "feature",
    [
        {"temperature": 1.0, "seed": 5},
        {"logprobs": 20},
        {"presence_penalty": 2.0, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
        {"logit_bias": ((40, 5.0),)},
        {"ignore_eos": True},
        {"stop": ("never said",)},
    ],
)
def test_what_one_request_asks_for_leaves_its_neighbours_text_alone(
    weights: Weights, feature: dict[str, Any]
) -> None:
    run = Run(weights)
    run.add(0, ask())
    run.step(4)
    run.add(1, ask("water", **feature))
    run.add(2, ask("a"))
    outcomes = run.to_the_end()
    assert outcomes[0].text == alone(weights, ask()).text
    assert outcomes[1].text == alone(weights, ask("water", **feature)).text
    assert outcomes[2].text == alone(weights, ask("a")).text


def test_a_biased_token_is_chosen_and_one_beyond_the_vocabulary_is_refused(
    weights: Weights,
) -> None:
    [token] = list(weights.tokenizer.encode("Z"))
    outcome = alone(weights, ask(max_tokens=5, logit_bias=((token, 100.0),)))
    assert outcome.text == "ZZZZZ"
    beyond = ask(logit_bias=((weights.vocabulary_size, 1.0),))
    error = alone(weights, beyond).error
    assert isinstance(error, InvalidGenerationError)
    assert "logit_bias" in error.message


def test_a_text_that_reads_as_a_token_the_model_has_no_numbers_for_is_refused_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    """A tokenizer may have been given tokens that its model was never made larger for."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    size = len(document["model"]["vocab"])
    document["added_tokens"].append({"id": size, "content": "[PAD]", "special": True, **known})
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    weights = weights_of(load_steps(folder, step_bytes=100_000))
    assert list(weights.tokenizer.encode("[PAD]"))[-1] >= weights.vocabulary_size
    run = Run(weights)
    run.add(0, ask())
    # Its number would be looked up, and with this penalty written to, beyond the arrays' ends.
    run.add(1, ask("a [PAD]", repetition_penalty=2.0))
    outcomes = run.to_the_end()
    error = outcomes[1].error
    assert isinstance(error, InvalidGenerationError)
    assert error.status_code == HTTPStatus.BAD_REQUEST
    assert outcomes[0].text == alone(weights, ask()).text


def test_probabilities_belong_to_the_greedy_text_token_by_token(weights: Weights) -> None:
    outcome = alone(weights, ask(logprobs=3))
    assert len(outcome.logprobs) == 30
    assert b"".join(entry.chosen.data for entry in outcome.logprobs).decode() == outcome.text
    for entry in outcome.logprobs:
        assert entry.top[0] == entry.chosen
        assert 0 >= entry.top[0].logprob >= entry.top[1].logprob >= entry.top[2].logprob


# ---------------------------------------------------------------- cancelling

SURVIVORS = [ask("hello", 40), ask("water", 35)]


@pytest.mark.parametrize("phase", PHASES)
def test_cancelling_in_any_phase_frees_at_once_and_leaves_the_others_text_alone(
    weights: Weights, phase: str
) -> None:
    victim = ask(LONG, 200)
    run = Run(weights, replace(SETTINGS, max_running=3))
    for key, request in enumerate(SURVIVORS):
        run.add(key, request)
    run.step(2)
    run.add(9, victim)
    reach(run, 9, phase)
    before = run.batch.snapshot("m")
    run.cancel(9)
    assert run.outcomes[9].released
    after = run.batch.snapshot("m")
    assert (after.running, after.waiting) == (before.running - (phase != "waiting"), 0)
    outcomes = run.to_the_end()
    assert [outcomes[key].text for key in (0, 1)] == [
        alone(weights, request).text for request in SURVIVORS
    ]
    # The place is free again, and what comes next is not disturbed either.
    run.add(10, SURVIVORS[0])
    assert run.to_the_end()[10].text == outcomes[0].text


def test_cancelling_what_has_left_or_never_was_does_nothing(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask(max_tokens=2))
    run.to_the_end()
    run.cancel(0)
    run.cancel(77)
    assert not run.outcomes[0].released


# ---------------------------------------------------------------- the end of a text


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_a_stop_string_ends_the_text_before_it(weights: Weights, length: int) -> None:
    whole = alone(weights, ask()).text
    stop = whole[20 : 20 + length]
    outcome = alone(weights, ask(stop=(stop, "never said")))
    assert outcome.text == whole[: whole.index(stop)]
    assert outcome.finished is not None
    assert outcome.finished.reason == "stop"
    assert outcome.finished.usage.completion_tokens == outcome.counts[-1] < 30


def test_text_held_back_for_a_stop_string_that_never_came_is_shown_at_the_end(
    weights: Weights,
) -> None:
    whole = alone(weights, ask())
    outcome = alone(weights, ask(stop=(whole.text[-3:] + "☃",)))
    assert outcome.text == whole.text
    assert outcome.finished == whole.finished


def test_the_token_that_ends_a_turn_is_counted_and_not_shown(weights: Weights) -> None:
    fed: list[int] = []
    watched = Interfering(weights.model, lambda tokens: fed.append(tokens[0, -1].item()))
    whole = alone(replace(weights, model=watched), ask())
    # The first step is fed the prompt's last token, each other one what the one before it chose.
    # Nobody wants what would come after the completion's last token.
    chosen = fed[-29:]
    assert len(whole.counts) == len(chosen) + 1
    ending = chosen[12]
    place = chosen.index(ending) + 1
    ends = copy.copy(weights.tokenizer)
    ends.eos_token_ids = {ending}
    ending_model = replace(weights, tokenizer=ends)
    outcome = alone(ending_model, ask())
    assert outcome.finished is not None
    assert outcome.finished.reason == "stop"
    assert outcome.finished.usage.completion_tokens == place == outcome.counts[-1]
    assert outcome.text == decoder(ends)(chosen[: place - 1])
    # Measurements go on regardless.
    assert alone(ending_model, ask(ignore_eos=True)).text == whole.text


def test_a_completion_never_grows_beyond_the_context(weights: Weights) -> None:
    prompt = "the" + " the" * (CONTEXT_LENGTH - 11)
    outcome = alone(weights, ask(prompt, max_tokens=8192))
    assert outcome.prompt_tokens is not None
    room = CONTEXT_LENGTH - outcome.prompt_tokens
    assert 0 < room < 20
    assert outcome.finished == Finished(0, "length", Usage(outcome.prompt_tokens, room))


def test_a_prompt_that_leaves_no_room_is_refused(weights: Weights) -> None:
    outcome = alone(weights, ask("the " * (CONTEXT_LENGTH + 1)))
    assert isinstance(outcome.error, InvalidGenerationError)
    assert outcome.error.status_code == 413
    assert outcome.counts == []


# ---------------------------------------------------------------- what goes wrong


def test_a_text_that_cannot_be_decoded_ends_only_itself(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask())
    run.add(1, ask("water"))
    run.step(5)
    entry = next(entry for entry in run.batch._running.values() if entry.key == 1)

    def broken(_token: int) -> str:
        raise ValueError("secret words")

    entry.output._detokenizer = type("Broken", (), {"add": staticmethod(broken)})()
    outcomes = run.to_the_end()
    assert isinstance(outcomes[1].error, GenerationFailedError)
    assert "secret" not in "".join(outcomes[1].error.lines())
    assert outcomes[0].text == alone(weights, ask()).text


def test_a_step_that_raises_fails_what_is_in_flight_and_no_more(weights: Weights) -> None:
    countdown = iter([*range(12)])

    def fail_once(_tokens: Any) -> None:
        if next(countdown, None) == 11:
            raise RuntimeError("[metal] out of memory")

    broken = replace(weights, model=Interfering(weights.model, fail_once))
    run = Run(broken, replace(SETTINGS, max_running=2))
    for key in range(3):
        run.add(key, ask())
    outcomes = run.to_the_end()
    for key in (0, 1):
        error = outcomes[key].error
        assert isinstance(error, GenerationFailedError)
        assert (error.why, error.status_code) == ("RuntimeError", 500)
    assert outcomes[2].text == alone(weights, ask()).text


def test_failing_everything_leaves_nothing(weights: Weights) -> None:
    run = Run(weights, replace(SETTINGS, max_running=1))
    run.add(0, ask())
    run.add(1, ask())
    run.step(4)
    error = EngineError(503, "stopping")
    run.take(run.batch.fail_all(error))
    assert [outcome.error for outcome in run.outcomes.values()] == [error, error]
    assert not run.batch.busy


# ---------------------------------------------------------------- bounds and figures


def test_prompts_come_in_small_pieces_while_streams_run(weights: Weights) -> None:
    sizes: list[int] = []
    watched = replace(
        weights, model=Interfering(weights.model, lambda tokens: sizes.append(tokens.shape[1]))
    )
    run = Run(watched)
    run.add(0, ask(LONG, 3))
    run.to_the_end()
    assert max(sizes) == SETTINGS.prefill_step_idle
    run.add(1, ask(max_tokens=100))
    run.step(5)
    sizes.clear()
    run.add(2, ask(LONG, 3))
    run.to_the_end()
    assert max(sizes) == SETTINGS.prefill_step_busy


def test_streams_get_what_is_computed_before_a_piece_of_a_prompt_makes_them_wait(
    weights: Weights,
) -> None:
    run = Run(weights)
    run.add(0, ask(max_tokens=100))
    run.step(5)
    run.add(1, ask(LONG, 3))
    told, pieces = 0, 0
    while not run.outcomes[1].counts:
        tokens, positions = len(run.outcomes[0].counts), run.model.positions
        run.step()
        if len(run.outcomes[0].counts) > tokens:
            told += 1
            assert run.model.positions == positions
        pieces += run.model.positions > positions + 1
    # A token for every piece: neither waits for the other to be done.
    assert pieces > 5
    assert told >= pieces


def test_a_first_token_is_told_as_soon_as_it_is_there(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask(LONG, 5))
    while not run.outcomes[0].counts:
        run.step()
    assert run.model.positions == run.outcomes[0].prompt_tokens  # no step begun for a second one


def test_no_more_run_than_the_setting_allows_and_the_rest_wait_their_turn(
    weights: Weights,
) -> None:
    run = Run(weights, replace(SETTINGS, max_running=2))
    for key in range(5):
        run.add(key, ask(max_tokens=4))
    seen = set()
    order: list[int] = []
    while run.batch.busy:
        run.step()
        seen.add(run.batch.snapshot("m").running)
        order += [k for k, o in run.outcomes.items() if o.finished and k not in order]
    assert max(seen) == 2
    assert order == [0, 1, 2, 3, 4]


def test_the_figures_of_a_slot_are_those_of_the_heartbeat(weights: Weights) -> None:
    run = Run(weights, replace(SETTINGS, max_running=1))
    run.add(0, ask("hello", 20))
    run.add(1, ask("hello", 20))
    run.step(6)
    slot = run.batch.snapshot("m")
    prompt = run.outcomes[0].prompt_tokens
    assert prompt is not None
    assert (slot.running, slot.waiting, slot.max_tokens_potential) == (1, 1, 20)
    assert slot.active_tokens == prompt + run.outcomes[0].counts[-1]
    assert slot.context_length == CONTEXT_LENGTH
    run.to_the_end()
    idle = run.batch.snapshot("m")
    assert (idle.running, idle.waiting, idle.active_tokens, idle.max_tokens_potential) == (0,) * 4
    assert run.batch.tokens_generated == 40


# ---------------------------------------------------------------- readers that are far behind


@pytest.mark.parametrize("request_", PROMPTS, ids=range(len(PROMPTS)))
def test_a_request_that_was_held_says_what_it_would_have_said(
    weights: Weights, request_: GenerationRequest
) -> None:
    run = Run(weights)
    run.add(0, request_)
    run.add(1, ask("another", max_tokens=60))
    run.step(6)
    run.batch.hold(0, held=True)
    run.step(10)
    run.batch.hold(0, held=False)
    held = run.to_the_end()[0]
    whole = alone(weights, request_)
    assert (held.text, held.finished) == (whole.text, whole.finished)


def test_while_it_is_held_nothing_of_it_is_computed_and_others_go_on(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask("hello", max_tokens=100))
    run.add(1, ask("world", max_tokens=100))
    run.step(6)
    run.batch.hold(0, held=True)
    run.step(2)  # what was on its way
    before = [len(run.outcomes[key].counts) for key in (0, 1)]
    run.step(20)
    after = [len(run.outcomes[key].counts) for key in (0, 1)]
    assert after == [before[0], before[1] + 20]


def test_a_held_request_without_company_keeps_nobody_busy(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask("hello", max_tokens=100))
    run.step(6)
    run.batch.hold(0, held=True)
    assert not run.batch.busy
    assert not run.batch.blocked
    run.batch.hold(0, held=False)
    assert run.to_the_end()[0].text == alone(weights, ask("hello", max_tokens=100)).text


def test_a_newcomer_is_let_in_beside_held_requests_even_if_all_places_are_theirs(
    weights: Weights,
) -> None:
    run = Run(weights, replace(SETTINGS, max_running=2))
    for key in (0, 1):
        run.add(key, ask("hello", max_tokens=50))
    run.step(8)
    for key in (0, 1):
        run.batch.hold(key, held=True)
    run.add(2, ask("world"))
    assert run.batch.blocked
    run.step()  # which lets it in
    assert run.to_the_end()[2].text == alone(weights, ask("world")).text
    for key in (0, 1):
        run.batch.hold(key, held=False)
    run.to_the_end()
    whole = alone(weights, ask("hello", max_tokens=50)).text
    assert [run.outcomes[key].text for key in (0, 1)] == [whole, whole]


@pytest.mark.parametrize("company", [True, False])
def test_a_held_request_can_be_cancelled_and_leaves_nothing(
    weights: Weights, *, company: bool
) -> None:
    run = Run(weights)
    run.add(0, ask("hello", max_tokens=100))
    if company:
        run.add(1, ask("world"))
    run.step(6)
    run.batch.hold(0, held=True)
    run.step(3 if company else 0)
    run.cancel(0)
    assert run.outcomes[0].released
    run.to_the_end()
    assert not run.batch.busy
    assert run.batch.snapshot("m").running == 0


def test_everything_fails_with_the_batch_held_or_not(weights: Weights) -> None:
    run = Run(weights)
    run.add(0, ask("hello", max_tokens=100))
    run.add(1, ask("world", max_tokens=100))
    run.step(6)
    run.batch.hold(0, held=True)
    run.step(3)
    run.take(run.batch.fail_all(EngineError(503, "the engine is closing")))
    assert all(outcome.error is not None for outcome in run.outcomes.values())
    assert not run.batch.busy
