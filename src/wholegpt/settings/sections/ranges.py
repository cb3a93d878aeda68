"""Range checks that name the setting."""

from wholegpt.errors import ConfigError


def require(name: str, value: float, holds: bool, expected: str) -> None:
    """Raise ``ConfigError`` for the setting ``name`` unless the condition ``holds``."""
    if not holds:
        raise ConfigError(f"{name} is {value}; expected a value {expected}")


def at_least(name: str, value: float, minimum: float) -> None:
    """Raise ``ConfigError`` for the setting ``name`` if ``value`` is below ``minimum``, or NaN."""
    require(name, value, value >= minimum, f"of at least {minimum}")


def below_one(name: str, value: float) -> None:
    """Raise ``ConfigError`` for the setting ``name`` unless ``value`` is in [0, 1)."""
    require(name, value, 0 <= value < 1, "of at least 0 and below 1")


def from_zero_to_one(name: str, value: float) -> None:
    """Raise ``ConfigError`` for the setting ``name`` unless ``value`` is in [0, 1]."""
    require(name, value, 0 <= value <= 1, "from 0 to 1")
