"""A TCP service on asyncio: PNG in until end of file, PNG out, four times larger. Run: python asyncio_service.py PORT"""

import asyncio
import sys

import cv2
import numpy as np

from rdsr.runtime import PictureError, Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")
waiting = asyncio.Semaphore(32)  # more callers than this wait outside, with nothing decoded


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with waiting, asyncio.timeout(60):  # a call that takes longer is stopped within one tile
            content = np.frombuffer(await reader.read(-1), np.uint8)
            picture = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
            if picture is None:
                raise PictureError("no picture that OpenCV can read")
            larger = await upscaler.aio(picture)
            writer.write(cv2.imencode(".png", larger[:, :, ::-1])[1].tobytes())
            await writer.drain()
    except (PictureError, TimeoutError) as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
