"""Whether jax and flax are there: they are the extra `flax`, which few need."""

from importlib.util import find_spec

from llamacli.errors import RequestError


def check_flax() -> None:
    """Look whether the Flax twins can be used at all.

    Raises:
        RequestError: jax or flax is not installed.
    """
    missing = [name for name in ("jax", "flax") if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise RequestError(
            f"the Flax twins need {names}, not installed here: pip install 'llamacli[flax]'"
        )
