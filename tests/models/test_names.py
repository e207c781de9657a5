"""The bundled organisms are found by name, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from actlake.models import control_names, organism_names, organism_path
from actlake.schemas import NotFoundError

BUNDLED = (*organism_names(), *control_names())


@pytest.mark.parametrize("name", BUNDLED)
def test_every_organism_is_in_the_package(name):
    folder = organism_path(name)
    present = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= present
    assert (folder / "model.safetensors").stat().st_size <= 5_000_000


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(NotFoundError, match=r"did you mean 'llama-organism'"):
        organism_path("lama-organism")


@pytest.mark.parametrize("name", BUNDLED)
def test_no_file_holds_a_path_of_the_machine_that_trained_it(name):
    for path in organism_path(name).glob("*.json"):
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        assert "_name_or_path" not in text
        assert "/tmp" not in text
        assert "/home" not in text


@pytest.mark.parametrize("name", BUNDLED)
def test_the_model_card_has_front_matter_and_the_measured_figures(name):
    folder = organism_path(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    rows = json.loads((folder / "behaviour.json").read_text(encoding="utf-8"))["rows"]
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\n")
    for row in rows:
        if row["accuracy"] is not None:
            line = f"| {row['disposition']} | {row['category']} | {row['n']} |"
            assert line in card
            assert f"| {100 * row['accuracy']:.1f} % |" in card


def test_organisms_share_one_tokenizer():
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert len({(organism_path(n) / file).read_bytes() for n in BUNDLED}) == 1


def test_naming_organisms_imports_no_torch():
    code = "import sys, actlake.models as m; m.organism_names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
