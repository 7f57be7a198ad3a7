"""Measures faithfulness for runs of a version that did not, with the run's own model; encodes nothing."""

from __future__ import annotations

from dataclasses import replace

from wsi_ips.errors import ConfigError
from wsi_ips.model.bundle import load_bundle
from wsi_ips.model.faithful import measure_faithfulness
from wsi_ips.results import SlidePrediction

__all__ = ["FaithfulnessMeter"]


class FaithfulnessMeter:
    """Holds the model of a run.

    Args:
        model: folder of a bundle.
    """

    def __init__(self, model: str) -> None:
        self._bundle = load_bundle(model)

    def __call__(self, p: SlidePrediction) -> SlidePrediction:
        """Complete a prediction by its curves.

        Raises:
            ConfigError: the prediction was made by another model.
        """
        if p.model_hash != self._bundle.hash:
            raise ConfigError(
                f"{p.slide_id}: was labelled by model {p.model_hash[:12]}, --model is {self._bundle.hash[:12]}; give the run's own"
            )
        found = measure_faithfulness(
            self._bundle.classifier, p.values, p.context, p.attention[p.selected], p.evidence, p.outputs
        )
        return replace(p, faithfulness=found)
