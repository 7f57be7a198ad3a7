"""The model card says what was judged, and nothing that was not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wsi_ips.config import ModelSettings
from wsi_ips.manifest import SlideRecord
from wsi_ips.report.training_page import Grid
from wsi_ips.tasks import TaskSettings
from wsi_ips.training.card import CardFacts, model_card
from wsi_ips.training.cases import CaseTable
from wsi_ips.training.evaluation import Evaluation, evaluate_cases
from wsi_ips.training.targets import Member
from wsi_ips.training.wording import splits_grid

TASK = TaskSettings(name="label", classes=("normal", "tumor"), temperature=1.7)
SPLITS = Grid(
    ("", "slides", "patients", "normal", "tumor"),
    (("training", "4", "3", "2", "2"), ("validation", "2", "2", "1", "1")),
)


def _settings(**more: Any) -> ModelSettings:
    return ModelSettings().replace(tasks=[TASK.replace(**more).model_dump()])


@pytest.fixture(scope="module")
def judged() -> Evaluation:
    """Forty test slides of two sites, three of four pairs of each site in order."""
    z = np.tile([-2.0, 0.5, 0.1, 3.0], 10)[:, None]
    y = np.tile([0.0, 0.0, 1.0, 1.0], 10)[:, None]
    ids = tuple(f"s{i}" for i in range(40))
    return evaluate_cases(CaseTable(ids, ids, ("A", "B") * 20, ("test",) * 40, z, y, (TASK,)), n_resamples=50)


def test_the_card_gives_the_figures_with_their_intervals(judged: Evaluation) -> None:
    """Headline sentence, other metrics, temperature with errors before and after, thresholds, sites, how intervals came."""
    card = model_card(_settings(), CardFacts(SPLITS, judged, warnings=("few slides",), trained=(("best epoch", "7"),)))
    assert "Research use only" in card
    assert "| training | 4 | 3 | 2 | 2 |" in card
    assert "AUROC 0.75 (95 % interval" in card
    assert "on 40 test slides of 40 patients." in card
    assert "temperature 1.700; expected calibration error" in card
    assert "| in use | 0.500 | 1.00 (1.00 to 1.00) | 0.50 (" in card
    assert "by site: A" in card
    assert "- few slides" in card
    assert "- best epoch: 7" in card
    assert "50 resamples of patients" in card


def test_a_card_without_judged_slides_claims_nothing() -> None:
    """No evaluation: it says that nothing is known, that nothing is calibrated and that no other site was tried."""
    card = model_card(_settings(temperature=1.0), CardFacts(SPLITS))
    assert "nothing is known of slides it has not seen" in card
    assert "not calibrated" in card
    assert "other sites" in card
    assert "AUROC" not in card


def test_a_card_promises_whole_patients_only_where_slides_name_them() -> None:
    """Else it says what may have happened."""
    assert "no patient stands on two sides" in model_card(_settings(), CardFacts(SPLITS))
    card = model_card(_settings(), CardFacts(SPLITS, names_patients=False))
    assert "no patient stands on two sides" not in card
    assert "slides of one patient may stand on two sides" in card


def test_names_of_a_manifest_cannot_write_the_card() -> None:
    """Table bars, tags, links and line breaks in a class or a warning stay text on their line."""
    evil = "a|b <script>\n# [x](y)"
    card = model_card(_settings(classes=("no", evil)), CardFacts(SPLITS, warnings=(evil,)))
    assert "\n# [" not in card
    assert "<script>" not in card
    assert card.count("a\\|b \\<script\\> \\# \\[x\\](y)") == 2


def test_the_folder_of_local_weights_is_not_told() -> None:
    """Only the file's name of local weights stands in the card."""
    settings = ModelSettings().replace(
        encoder={"weights": "/home/erika/secret/uni.safetensors"}, tasks=[TASK.model_dump()]
    )
    card = model_card(settings, CardFacts(SPLITS))
    assert "uni.safetensors" in card
    assert "erika" not in card


def test_splits_count_slides_patients_and_classes() -> None:
    """One row a side: classes counted, unknown ones in no class, ranges of numbers, events of survival."""
    tasks = (TASK, TaskSettings(name="count", kind="regression"),
             TaskSettings(name="life", kind="survival", event_column="e", cuts=(1.0,), classes=("0", "1")))  # fmt: skip
    nan = float("nan")
    rows = [("p", (1.0, 5.0, 2.0, 1.0)), ("p", (0.0, 7.0, 3.0, 0.0)), ("q", (nan, nan, nan, nan))]
    members = [Member(SlideRecord(f"s{i}", "", patient), targets) for i, (patient, targets) in enumerate(rows)]
    grid = splits_grid({"training": members, "test": []}, tasks)
    assert grid.head[1:5] == ("slides", "patients", "label: normal", "label: tumor")
    assert grid.rows[0] == ("training", "3", "2", "1", "1", "6 (5 to 7)", "1", "1")
    assert grid.rows[1] == ("test", "0", "0", "0", "0", "-", "0", "0")
