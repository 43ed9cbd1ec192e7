"""The environment as frozen settings. What cannot be right is refused with its remedy.

``settings`` has every variable, ``access`` those of authentication, ``values`` what one value must
look like, ``rules`` what several of them mean together, ``sources`` where they come from, and
``rotation`` the secrets that change while the service runs.
"""

from payment_service.config.rules import SIMULATOR_KEY
from payment_service.config.settings import (
    SIMULATOR_PUBLISHABLE_KEY,
    Settings,
    WrongSettings,
    holding_limit,
)
from payment_service.config.sources import load_settings

__all__ = [
    "SIMULATOR_KEY",
    "SIMULATOR_PUBLISHABLE_KEY",
    "Settings",
    "WrongSettings",
    "holding_limit",
    "load_settings",
]
