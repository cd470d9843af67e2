"""The cold start's own rules: ratios are medians of turns, processes are timed, failures named."""

from __future__ import annotations

import os
import sys

import pytest

from ldm.errors import LDMError
from tools.cold_start import BASE, Taken, commands, import_times, ratio, table, timed


def test_a_ratio_is_the_median_of_the_turns() -> None:
    ours = [Taken(3.0, 1.5), Taken(9.0, 1.6), Taken(4.0, 1.4)]
    torch = [Taken(2.0, 1.0), Taken(3.0, 1.0), Taken(2.0, 1.0)]
    assert ratio(ours, torch) == Taken(2.0, 1.5)


def test_the_table_compares_with_torch_and_with_diffusers_of_as_many_steps() -> None:
    found = {
        BASE: [Taken(2.0, 1.0)],
        "ldm, 4 steps": [Taken(3.0, 1.2)],
        "ldm, 20 steps": [Taken(4.0, 2.0)],
        "diffusers, 4 steps": [Taken(12.0, 6.0)],
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(found)[2:]]
    assert rows[1] == ["`ldm, 4 steps`", "3.00 (3.00)", "1.20", "1.50", "1.20", "0.25 (0.20)"]
    assert rows[2][-1] == ""
    assert rows[3] == ["`diffusers, 4 steps`", "12.00 (12.00)", "6.00", "6.00", "6.00", ""]


def test_commands_write_into_the_folder_they_are_given(tmp_path) -> None:
    made = commands(tmp_path, diffusers=True)
    assert next(iter(made)) == BASE
    assert len(made) == 6
    assert all(str(tmp_path) in " ".join(command) for name, command in made.items() if name != BASE)


def test_a_process_is_timed_and_one_that_fails_is_named() -> None:
    taken = timed([sys.executable, "-c", "import time; time.sleep(0.2)"], dict(os.environ))
    assert taken.clock >= 0.2
    assert 0 < taken.processor < taken.clock
    with pytest.raises(LDMError, match="ValueError: too cold"):
        timed([sys.executable, "-c", "raise ValueError('too cold')"], dict(os.environ))


def test_import_times_name_modules() -> None:
    assert "decimal" in import_times(["-c", "import decimal"])
    with pytest.raises(LDMError, match="nothing_of_this_name"):
        import_times(["-c", "import nothing_of_this_name"])
