"""A TCP service on asyncio: a picture in until end of file, a 4 times larger PNG out. Run: python asyncio_service.py PORT"""

import asyncio
import sys
from functools import partial

from rdsr.runtime import Cancel, RdsrError, Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")
waiting = asyncio.Semaphore(8)  # further pictures wait as files, not yet decoded


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    cancel = Cancel()
    try:
        async with asyncio.timeout(60):  # for the whole request; a call that takes longer is stopped within one tile
            content = bytearray()
            while len(content) < 2**25 and (part := await reader.read(2**16)):  # 32 MiB are enough
                content += part
            async with waiting:  # a small file can hold a huge picture: a million pixels are enough
                call = partial(upscaler.encoded, bytes(content), "png", max_pixels=2**20, cancel=cancel)
                png = await asyncio.to_thread(call)
            writer.write(png)
            await writer.drain()
    except (RdsrError, OSError) as error:  # OSError: no peer, or too late
        print(f"refused: {error}", file=sys.stderr, flush=True)
    finally:
        cancel.set()
        writer.close()


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        server = runner.run(asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])))
        print(server.sockets[0].getsockname()[1], flush=True)
        runner.run(server.serve_forever())
