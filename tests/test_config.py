"""What the library says about itself."""

import subprocess
import sys

import pytest

import fastattn as fa


def test_configuration_comes_as_a_dict_or_in_print(capsys):
    facts = fa.show_config(mode="dict")
    assert facts["isa"] in facts["isas"]
    assert fa.show_config() is None
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(printed) == [f"{key}:" for key in facts]
    assert printed["isa:"] == facts["isa"]


def test_configuration_in_another_form_is_refused():
    with pytest.raises(ValueError, match="show_config: mode"):
        fa.show_config(mode="json")


def test_module_prints_the_configuration():
    run = subprocess.run([sys.executable, "-m", "fastattn"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("fastattn:")
    assert "isas:" in run.stdout
