from __future__ import annotations

import pytest

from darkbloom_provider.errors import ModelError
from darkbloom_provider.models.catalogue import Catalogue
from darkbloom_provider.protocol.money import DEFAULT_PRICE, Price


def test_the_rates_of_the_product_page_are_built_in() -> None:
    catalogue = Catalogue.builtin()
    assert {entry.id: (entry.input_price, entry.output_price) for entry in catalogue.entries} == {
        "qwen3.5-27b-claude-opus-8bit": (100_000, 780_000),
        "mlx-community/gemma-4-26b-a4b-it-8bit": (65_000, 200_000),
        "mlx-community/Trinity-Mini-8bit": (23_000, 75_000),
        "mlx-community/Qwen3.5-122B-A10B-8bit": (130_000, 1_040_000),
        "mlx-community/MiniMax-M2.5-8bit": (60_000, 500_000),
        "smollm2-135m-instruct": (50_000, 200_000),
    }


def test_the_seeded_models_are_described_as_the_network_describes_them() -> None:
    trinity = Catalogue.builtin().get("mlx-community/Trinity-Mini-8bit")
    assert trinity is not None
    assert (trinity.s3_name, trinity.display_name, trinity.model_type) == (
        "Trinity-Mini-8bit",
        "Trinity Mini",
        "text",
    )
    assert (trinity.size_gb, trinity.min_ram_gb, trinity.active, trinity.weight_hash) == (
        26.0,
        48,
        True,
        "",
    )


def test_ids_match_exactly_and_an_unlisted_model_costs_the_default() -> None:
    catalogue = Catalogue.builtin()
    assert catalogue.price("mlx-community/MiniMax-M2.5-8bit") == Price(60_000, 500_000)
    assert catalogue.price("mlx-community/minimax-m2.5-8bit") == DEFAULT_PRICE
    assert catalogue.get("nothing") is None


ENTRY = """
[[models]]
id = "a"
s3_name = "a"
display_name = "A"
model_type = "text"
size_gb = 1
architecture = ""
description = ""
min_ram_gb = 2
active = true
weight_hash = ""
input_price = 1
output_price = 2
"""


def test_whole_numbers_are_sizes_too() -> None:
    assert Catalogue.parse(ENTRY).entries[0].size_gb == 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[models]", "Expected"),
        ("models = 3", "list of tables"),
        ("models = [3]", "list of tables"),
        (ENTRY + ENTRY, "twice"),
        (ENTRY.replace("input_price = 1", ""), "input_price is missing"),
        (ENTRY + "colour = 1", "colour is not known"),
        (ENTRY.replace("input_price = 1", "input_price = 1.5"), "input_price has the wrong kind"),
        (ENTRY.replace("input_price = 1", "input_price = true"), "input_price has the wrong kind"),
        (ENTRY.replace("input_price = 1", "input_price = -1"), "input_price is negative"),
        (ENTRY.replace('id = "a"', 'id = ""'), "empty id"),
    ],
)
def test_a_catalogue_with_a_mistake_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        Catalogue.parse(text)
    assert caught.value.why is not None
    assert reason in caught.value.why
