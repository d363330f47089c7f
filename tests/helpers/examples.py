"""How many examples a property is tried on: few every day, fifty times as many with `--hypothesis-profile=thorough`."""

from hypothesis import settings

_DAILY = 100


def register_profiles() -> None:
    """Tell hypothesis of both profiles and choose the daily one; the command line may choose the other afterwards."""
    settings.register_profile("daily", deadline=None, max_examples=_DAILY)
    settings.register_profile("thorough", deadline=None, max_examples=50 * _DAILY)
    settings.load_profile("daily")


def examples(count: int) -> settings:
    """Try a property on `count` examples, and on as many more as the chosen profile asks for."""
    return settings(max_examples=count * settings().max_examples // _DAILY)
