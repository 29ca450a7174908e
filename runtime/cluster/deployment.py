"""The service as a Ray Serve deployment: `serve run rdsr.runtime.cluster.deployment:app max_replicas=4`.

The arguments are those of `ServiceOptions`, `bundles` as one text `NAME=FOLDER,…`, and `replicas` below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ray import serve

from ..arguments import shown, whole_number
from ..errors import OptionError
from ..service.options import ServiceOptions, named_bundles

__all__ = ["app"]

_PROCESSORS = 2
_SECONDS = 5.0
"""How long replicas are busy before another is added, which is ready in two seconds."""
_BUSY = 4.0
"""Requests of one replica, in work and waiting, from which on there should be another replica."""


@serve.ingress()
class _Replica:
    """One process with the whole service, and the limits of `rdsr serve`, except those on connections, which Ray keeps."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __serve_build_asgi_app__(self) -> Any:
        from ..service.app import make_app
        from ..service.service import Service

        self._service = Service(ServiceOptions(**self._fields))
        return make_app(self._service)

    def check_health(self) -> None:
        """Raises the error of the first picture if it could not be upscaled; Ray then replaces the replica."""
        if self._service.failure is not None:
            raise self._service.failure


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """The application that `serve run` and Serve's config files start.

    `arguments`: fields of `ServiceOptions`; `bundles` as a list of NAME=FOLDER, or one text with commas; `min_replicas` (1),
    `max_replicas` (1) and `processors` (2) of each. Replicas are added while each has more than four requests. Raises
    `OptionError`.
    """
    given = dict(arguments)
    least, most = (_whole(given.pop(name, 1), name) for name in ("min_replicas", "max_replicas"))
    processors = _whole(given.pop("processors", _PROCESSORS), "processors")
    bundles = given.pop("bundles", [])
    named = named_bundles([each for each in bundles.split(",") if each] if isinstance(bundles, str) else list(bundles))
    types = {field.name: type(field.default) for field in dataclasses.fields(ServiceOptions)} | {"threads": int}
    if unknown := sorted(given.keys() - types.keys()):
        raise OptionError(f"there is no option {unknown[0]}; there are {', '.join(sorted(types))}")
    # `serve run` gives texts.
    fields = {name: _number(value, types[name], name) for name, value in given.items()}
    fields = {"threads": processors} | fields | {"bundles": named}
    options = ServiceOptions(**fields)
    deployment = serve.deployment(
        name="rdsr",
        ray_actor_options={"num_cpus": processors},
        max_ongoing_requests=options.connections,  # beyond the service's own queue, so that it can say 429
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": max(least, most),
            "target_ongoing_requests": _BUSY,
            "upscale_delay_s": _SECONDS,
        },
        graceful_shutdown_timeout_s=options.deadline + options.patience,
    )(_Replica)
    return deployment.bind(fields)


def _number(value: Any, kind: type, name: str) -> Any:
    """A text as a number, if the option is one."""
    try:
        return kind(value) if isinstance(value, str) and kind in (int, float) else value
    except (TypeError, ValueError):
        raise OptionError(f"{name} must be a number, not {shown(value)}") from None


def _whole(value: Any, name: str) -> int:
    return whole_number(name, _number(value, int, name), 1, 10_000)
