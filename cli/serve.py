"""`rdsr serve`: upscaling over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from .exit_codes import Terminated, command
from .options import BackendOption, MemoryLimitOption, PrecisionOption, ThreadsOption

__all__ = ["serve"]


@command
def serve(
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            help="Bundle folder, or NAME=FOLDER; may be repeated. The first is the default; none: the package's own."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one, which the log names.")] = 8000,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; further ones get 429 and Retry-After.")] = 4,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of a picture, by its header.")] = 2**22,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes of a request's body.")] = 2**26,
    memory_limit: MemoryLimitOption = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds until an answer must begin.")] = 60.0,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds for headers, and how far a client may fall behind 64 KiB/s.")
    ] = 10.0,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "auto",
    threads: ThreadsOption = None,
    workers: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve bundles over HTTP: pictures at /v1/upscale, tensors at /v2 (KServe, Triton), a page at /, /docs, /metrics.

    SIGTERM and Ctrl-C: what was admitted is answered, then it ends with 0.

    Example: rdsr serve --bundle rdsr-small.bundle --memory-limit 1GiB --host 0.0.0.0
    """
    from ..runtime.errors import OptionError
    from ..runtime.service.options import ServiceOptions, named_bundles

    if workers is not None:
        raise OptionError(
            "there are no workers: one process answers while its engine computes on all threads, with one queue, one memory "
            "limit and one page of metrics; for more small pictures a second at twice the memory, or for several sockets, "
            "start processes with --threads and --port behind a balancer"
        )
    options = ServiceOptions(
        bundles=named_bundles(bundle or []),
        backend=backend,
        precision=precision,
        threads=threads,
        memory_limit=memory_limit,
        queue=queue,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        deadline=deadline,
        patience=patience,
    )
    from ..runtime.service.server import serve as run

    try:
        run(options, host, port)
    except (KeyboardInterrupt, Terminated):  # it has answered what it had admitted
        return
