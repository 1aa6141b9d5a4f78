"""The calculator: what is estimated, and that it can neither surprise nor flatter."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from darkbloom_provider.coordinator.console.views import calculator
from darkbloom_provider.coordinator.console.views.calculator import (
    DEFAULTS,
    Assumptions,
    Estimate,
    Running,
    estimate,
    ranking,
    read_inputs,
)
from darkbloom_provider.coordinator.console.views.macs import MACS, Mac
from darkbloom_provider.host.hardware import bandwidth_gbs, chip_of
from darkbloom_provider.models.catalogue import Catalogue, CatalogueModel

OFFERED = Catalogue.builtin().entries
MODELS = [model for model in OFFERED if model.id in calculator.ACTIVE_GB]
QWEN = MODELS[0]

machines = st.builds(
    Running,
    memory_gb=st.integers(8, 512),
    bandwidth_gbs=st.floats(50, 1000),
    added_watts=st.floats(0, 400),
)
assumptions = st.builds(
    Assumptions,
    hours_per_day=st.floats(1, 24),
    utilisation=st.floats(0.01, 1),
    price_per_kwh=st.floats(0, 2),
    owner_share=st.floats(0, 1),
)
models = st.sampled_from(MODELS)


def fitting(machine: Running, model: CatalogueModel, assumed: Assumptions) -> Estimate:
    found = estimate(machine, model, assumed)
    assume(found is not None)
    assert found is not None
    return found


def test_one_estimate_by_hand() -> None:
    # 128 GB hold 27 GB and sixteen requests; 400 / 27 * 0.6 * 16 * 0.9 = 128 tokens a second.
    machine = Running(memory_gb=128, bandwidth_gbs=400, added_watts=136)
    found = estimate(machine, QWEN, Assumptions(18, utilisation=1, price_per_kwh=0.15))
    assert found is not None
    assert found.batch == 16
    assert found.tokens_per_second == pytest.approx(128)
    # 128 tokens/s * 3600 * 540 h = 248 832 000 tokens at $0.78 a million.
    assert found.earned == pytest.approx(194_088_960, abs=2)
    assert found.electricity == pytest.approx(0.136 * 540 * 0.15 * 1e6, abs=2)
    assert found.net_year == 12 * (found.earned - found.electricity)


@pytest.mark.parametrize(
    ("memory", "batch", "efficiency"),
    [(36, 4, 0.80), (37, 5, 0.85), (43, 8, 0.85), (45, 9, 0.90), (512, 16, 0.90)],
)
def test_more_free_memory_holds_more_requests(memory: int, batch: int, efficiency: float) -> None:
    found = estimate(Running(memory, 270, 0), QWEN, Assumptions(24, 1, 0))
    assert found is not None
    assert found.batch == batch
    assert found.tokens_per_second == pytest.approx(10 * 0.6 * batch * efficiency)


@given(machine=machines, model=models, assumed=assumptions)
def test_a_model_that_does_not_fit_is_not_estimated(
    machine: Running, model: CatalogueModel, assumed: Assumptions
) -> None:
    found = estimate(machine, model, assumed)
    assert (found is None) == (model.min_ram_gb > machine.memory_gb)


@given(machine=machines, model=models, assumed=assumptions, factor=st.floats(0.1, 1))
def test_half_the_work_is_half_the_money_and_half_the_electricity(
    machine: Running, model: CatalogueModel, assumed: Assumptions, factor: float
) -> None:
    whole = fitting(machine, model, assumed)
    part = fitting(machine, model, replace(assumed, utilisation=assumed.utilisation * factor))
    assert part.earned == pytest.approx(whole.earned * factor, rel=1e-6, abs=2)
    assert part.electricity == pytest.approx(whole.electricity * factor, rel=1e-6, abs=2)
    assert part.tokens_per_second == whole.tokens_per_second


@given(machine=machines, model=models, assumed=assumptions, more=st.floats(1, 3))
def test_a_faster_or_larger_machine_never_earns_less(
    machine: Running, model: CatalogueModel, assumed: Assumptions, more: float
) -> None:
    base = fitting(machine, model, assumed)
    faster = fitting(replace(machine, bandwidth_gbs=machine.bandwidth_gbs * more), model, assumed)
    larger = fitting(replace(machine, memory_gb=int(machine.memory_gb * more)), model, assumed)
    assert base.earned <= faster.earned
    assert base.earned <= larger.earned


@given(machine=machines, model=models, assumed=assumptions)
def test_nobody_is_promised_more_than_consumers_would_pay(
    machine: Running, model: CatalogueModel, assumed: Assumptions
) -> None:
    found = fitting(machine, model, assumed)
    seconds = 24 * 3600 * calculator.DAYS_PER_MONTH
    paid = found.tokens_per_second * seconds * model.output_price / 1e6
    assert 0 <= found.earned <= paid * (1 + 1e-9)
    assert found.electricity >= 0
    assert found.net <= found.earned


@given(machine=machines, assumed=assumptions)
def test_the_best_model_stands_first(machine: Running, assumed: Assumptions) -> None:
    nets = [one.net for one in ranking(machine, MODELS, assumed)]
    assert nets == sorted(nets, reverse=True)


def test_of_a_model_too_small_for_the_formula_nothing_is_promised() -> None:
    tiny = next(model for model in OFFERED if model.size_gb < 1)
    assert estimate(Running(512, 800, 0), tiny, Assumptions(24, 1, 0)) is None
    shown = calculator.view({}, read_inputs({}, OFFERED), OFFERED, fee_percent=0)
    assert tiny.display_name in shown.too_small
    assert tiny.display_name not in shown.too_large


def test_a_model_of_which_nothing_is_known_reads_all_its_weights() -> None:
    own = replace(QWEN, id="my/own-model")
    machine, assumed = Running(64, 400, 0), Assumptions(24, 1, 0)
    assert calculator.active_gb(own) == own.size_gb
    assert estimate(machine, own, assumed) is not None


def test_a_model_that_is_not_offered_is_not_estimated() -> None:
    retired = replace(QWEN, active=False)
    assert ranking(Running(512, 800, 0), [retired], Assumptions(24, 1, 0)) == ()


@pytest.mark.parametrize("mac", MACS, ids=lambda mac: mac.key)
def test_the_table_of_macs_agrees_with_what_the_program_reports(mac: Mac) -> None:
    assert mac.bandwidth_gbs == bandwidth_gbs(chip_of(f"Apple {mac.chip}"), mac.gpu_cores)
    assert list(mac.memories_gb) == sorted(set(mac.memories_gb))
    assert (mac.idle_watts is None) == (mac.busy_watts is None)
    assert mac.idle_watts is None or mac.busy_watts is None or mac.idle_watts < mac.busy_watts


def test_every_mac_has_a_name_of_its_own() -> None:
    assert len({mac.key for mac in MACS}) == len({mac.name for mac in MACS}) == len(MACS)


def test_every_model_of_the_network_is_known_by_what_a_token_reads() -> None:
    assert set(calculator.ACTIVE_GB) <= {model.id for model in MODELS}


def test_what_is_left_out_has_its_default() -> None:
    inputs = read_inputs({}, MODELS)
    assert (inputs.mac.key, str(inputs.memory_gb)) == (DEFAULTS["mac"], DEFAULTS["memory"])
    assert (inputs.hours, inputs.utilisation_percent, inputs.kwh_usd) == (18, 25, 0.15)
    assert inputs.added_watts == 135


def test_a_machine_whose_power_nobody_states_costs_what_its_owner_says() -> None:
    query = {"mac": "macbook-pro-m4-pro", "memory": "48"}
    assert read_inputs(query, MODELS).added_watts is None
    assert read_inputs(query | {"watts": "60"}, MODELS).added_watts == 60


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"mac": "toaster"}, "one of the Macs"),
        ({"memory": "8"}, "comes with 24 or 48 or 64 GB"),
        ({"memory": "lots"}, "comes with"),
        ({"model": "nothing"}, "one of the models"),
        ({"hours": "25"}, "Hours per day must be a number from 1 to 24"),
        ({"hours": "nan"}, "Hours per day"),
        ({"use": "0"}, "from 1 to 100"),
        ({"kwh": "-1"}, "electricity"),
        ({"watts": "inf"}, "Power at work"),
    ],
)
def test_what_cannot_be_calculated_with_is_said_in_words(query: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=r"must|Choose|comes") as refused:
        read_inputs(query, MODELS)
    assert why in str(refused.value)
