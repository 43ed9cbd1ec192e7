"""Hypothesis's profiles: the same examples every time, unless `explore` is asked for.

`HYPOTHESIS_PROFILE=explore` looks further and at random; what it finds becomes a test of its own.
"""

import os

from hypothesis import HealthCheck, settings

_patient = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=150, suppress_health_check=_patient
)
settings.register_profile(
    "explore", deadline=None, max_examples=5_000, suppress_health_check=_patient, database=None
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
