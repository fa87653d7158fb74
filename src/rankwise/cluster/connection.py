"""The connection to a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rankwise.errors import Unreachable, UsageError
from rankwise.training import signals

LOCAL = "local"
"""The address of a cluster that is started for this process, on this machine."""
CONNECT_SECONDS = 10.0
"""Time for a connection to a cluster."""
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
        with signals.kept():
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
    _require_listening(address)
    own = {"num_cpus": cpus, "object_store_memory": store_bytes, "include_dashboard": False}
    try:
        with signals.kept():  # Ray's handler of SIGTERM would end this process before it has saved
            ray.init(
                address,
                log_to_driver=False,
                configure_logging=False,
                **(own if address == LOCAL else {}),
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise _none_at(address, error) from None
    try:
        yield ray
    except KeyboardInterrupt:
        signals.check()  # while Ray waits, it makes ours a plain one, without an exit status
        raise
    finally:
        with suppress(Exception):  # the cluster may be gone, and the work is done
            ray.shutdown()


def _require_listening(address: str) -> None:
    """Check that something listens at HOST:PORT. If nothing does, Ray would end this process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    if not port.isdecimal():
        raise UsageError(f"{address}: not HOST:PORT", hint="such as 10.0.0.1:6379 or ray://10.0.0.1:10001")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _none_at(address, error) from None


def _none_at(address: str, error: Exception) -> Unreachable:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Unreachable(
        f"no Ray cluster at {address}: {reason}",
        hint="ray status shows whether one runs; local starts one on this machine",
    )
