"""The connection to a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rankwise.errors import Unreachable, UsageError

LOCAL = "local"
"""The address of a cluster that is started for this process, on this machine."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anyone
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers without a GPU keep CUDA_VISIBLE_DEVICES
}


def ray_module() -> Any:
    """The package ray.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("a cluster needs the package ray", hint="pip install 'rankwise[ray]'") from None
    return ray


@contextmanager
def connected(address: str, *, cpus: int | None = None, store_bytes: int | None = None) -> Iterator[Any]:
    """Connect to a cluster, and disconnect at the end; a local one is then stopped.

    Args:
        address: `local`, `auto` for the cluster that this machine is part of, HOST:PORT, or ray://HOST:PORT.
        cpus: cores of a local cluster; None for all.
        store_bytes: size of the object store of a local cluster; None for Ray's default.

    Yields:
        The package ray.

    Raises:
        UsageError: ray is not installed, or this process is connected already.
        Unreachable: there is no cluster at this address.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ray = ray_module()
    if ray.is_initialized():
        raise UsageError("this process is connected to a cluster already", hint="call ray.shutdown() first")
    own = {"num_cpus": cpus, "object_store_memory": store_bytes, "include_dashboard": False}
    try:
        ray.init(
            address,
            log_to_driver=False,
            configure_logging=False,
            **(own if address == LOCAL else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreachable(
            f"no Ray cluster at {address}: {reason}",
            hint="ray status shows whether one runs; local starts one on this machine",
        ) from None
    try:
        yield ray
    finally:
        with suppress(Exception):  # the cluster may be gone, and the work is done
            ray.shutdown()
