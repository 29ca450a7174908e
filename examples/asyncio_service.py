"""A TCP service on asyncio: picture in until end of file, PNG out, four times larger. Run: python asyncio_service.py PORT"""

import asyncio
import sys

import cv2
import numpy as np

from rdsr.runtime import PictureError, Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")
waiting = asyncio.Semaphore(32)  # more pictures than this wait as files, with nothing decoded


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(60):  # in all; a call that takes longer is stopped within one tile
            content = bytearray()
            while len(content) < 2**25 and (part := await reader.read(2**16)):  # 32 MiB are enough
                content += part
            async with waiting:
                file = np.frombuffer(content or b"-", np.uint8)
                picture = await asyncio.to_thread(cv2.imdecode, file, cv2.IMREAD_COLOR_RGB)
                larger = await upscaler.aio(np.asarray(picture))  # refused where it is none
                png = await asyncio.to_thread(cv2.imencode, ".png", larger[:, :, ::-1])
            writer.write(png[1].tobytes())
            await writer.drain()
    except (PictureError, TimeoutError) as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
    finally:
        writer.close()


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        server = runner.run(asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])))
        print(server.sockets[0].getsockname()[1], flush=True)
        runner.run(server.serve_forever())
