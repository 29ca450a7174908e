"""A TCP service on asyncio: a picture in until end of file, a 4 times larger PNG out. Run: python asyncio_service.py PORT"""

import asyncio
import io
import sys

import numpy as np
from PIL import Image

from rdsr.runtime import PictureError, Upscaler

upscaler = Upscaler.load(memory_limit="512MiB")
waiting = asyncio.Semaphore(8)  # further pictures wait as files, not yet decoded
Image.MAX_IMAGE_PIXELS = 2**19  # pictures beyond twice as many are refused: a small file can hold a huge picture


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(60):  # for the whole request; a call that takes longer is stopped within one tile
            content, png = bytearray(), io.BytesIO()
            while len(content) < 2**25 and (part := await reader.read(2**16)):  # 32 MiB are enough
                content += part
            async with waiting:
                picture = await asyncio.to_thread(Image.open(io.BytesIO(content)).convert, "RGB")
                larger = await upscaler.aio(np.asarray(picture))
                await asyncio.to_thread(Image.fromarray(larger).save, png, "PNG")
            writer.write(png.getvalue())
            await writer.drain()
    except (PictureError, OSError, Image.DecompressionBombError) as error:  # OSError: no picture, no peer, or too late
        print(f"refused: {error}", file=sys.stderr, flush=True)
    finally:
        writer.close()


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        server = runner.run(asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])))
        print(server.sockets[0].getsockname()[1], flush=True)
        runner.run(server.serve_forever())
