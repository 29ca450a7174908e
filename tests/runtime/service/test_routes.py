"""The routes, in this process: pictures, tensors, errors, metrics."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from rdsr.runtime import OutputError, Upscaler
from rdsr.runtime.pictures.formats import sniff
from rdsr.runtime.service.app import make_app
from rdsr.runtime.service.formats import NotAcceptableError, wanted_format
from rdsr.runtime.service.gate import Gate, TooLateError
from rdsr.runtime.service.models import Models
from rdsr.runtime.service.options import ServiceOptions
from rdsr.runtime.service.service import Service
from rdsr.runtime.service.tensors import TensorError, read_request, write_response

MOST_PIXELS = 40_000


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(ServiceOptions(threads=1, max_pixels=MOST_PIXELS, max_bytes=2**20))


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def library() -> Upscaler:
    return Upscaler.load(threads=1)


def pixels(height: int = 24, width: int = 31) -> np.ndarray[Any, Any]:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(suffix: str = ".png", **size: int) -> bytes:
    return bytes(cv2.imencode(suffix, pixels(**size))[1])


# -- Pictures


def test_the_bytes_are_the_librarys(client: TestClient, library: Upscaler) -> None:
    answer = client.post("/v1/upscale", content=encoded(), headers={"X-Request-ID": "my-own.id"})
    assert answer.status_code == 200
    assert answer.content == library.encoded(encoded())
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-request-id"] == "my-own.id"
    stages = [part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")]
    assert stages == ["queue", "decode", "network", "encode"]


def test_options_reach_the_library(client: TestClient, library: Upscaler) -> None:
    query = {"format": "jpg", "quality": 40, "scale": 2}
    answer = client.post("/v1/upscale", params=query, content=encoded())
    assert answer.content == library.encoded(encoded(), "jpg", quality=40, scale=2)
    seeded = client.post("/v1/upscale", params={"seed": 7, "format": "png"}, content=encoded()).content
    assert seeded == Upscaler.load(threads=1, seed=7).encoded(encoded())
    assert seeded == library.with_seed(7).encoded(encoded())


def test_a_form_does_as_well(client: TestClient, library: Upscaler) -> None:
    files = {"file": ("picture.png", io.BytesIO(encoded()), "image/png")}
    assert client.post("/v1/upscale", files=files).content == library.encoded(encoded())
    refused = client.post("/v1/upscale", files={"file": (None, "no file")})
    assert refused.status_code == 422
    assert refused.json() == {"error": "the form holds no file"}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, None), ("", None), ("*/*", None), ("image/*", None), ("image/webp", "webp"),
        ("image/avif,image/webp,image/png;q=0.9,*/*;q=0.5", "avif"), ("image/webp;q=0.1, image/png", "png"),
        ("text/html, image/*;q=0.3", None), ("IMAGE/PNG", "png"), ("image/png;q=x, image/jpeg", "jpg"),
    ],
)  # fmt: skip
def test_accept_chooses_the_format(accept: str | None, wanted: str | None) -> None:
    assert wanted_format(accept) == wanted


def test_accept_over_the_wire(client: TestClient) -> None:
    answer = client.post("/v1/upscale", content=encoded(), headers={"Accept": "image/webp"})
    assert (answer.headers["content-type"], sniff(answer.content[:64], "it")) == ("image/webp", "webp")
    own = client.post("/v1/upscale", content=encoded(".jpg"), headers={"Accept": "*/*"})
    assert own.headers["content-type"] == "image/jpeg"
    with pytest.raises(NotAcceptableError):
        wanted_format("text/html")
    assert client.post("/v1/upscale", content=encoded(), headers={"Accept": "text/html"}).status_code == 406


@pytest.mark.parametrize(
    ("query", "body", "status", "words"),
    [
        ({}, b"", 422, "empty"), ({}, b"no picture", 422, "known format"), ({}, encoded()[:60], 422, "damaged"),
        ({"model": "other"}, encoded(), 404, "no model is called 'other'"), ({"scale": 5}, encoded(), 422, "at most"),
        ({"format": "gif"}, encoded(), 422, "format"), ({"quality": 0}, encoded(), 422, "quality"),
        ({"seed": -1}, encoded(), 422, "seed"), ({"scale": 1e-200, "format": "avif"}, encoded(), 422, "scale"),
        ({}, encoded(height=201, width=200), 413, "pixels"),
        ({}, bytes(2**20 + 1), 413, "more than 1048576 bytes"), ({"timeout": 1e-6}, encoded(), 408, "in time"),
        ({"format": "jpg", "lossless": True}, encoded(), 422, "always loses"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(
    client: TestClient, service: Service, query: dict[str, Any], body: bytes, status: int, words: str
) -> None:
    answer = client.post("/v1/upscale", params=query, content=body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words.lower() in answer.json()["error"].lower()
    assert "\n" not in answer.json()["error"]


def test_a_small_file_that_claims_to_be_huge(client: TestClient) -> None:
    content = bytearray(encoded())
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    answer = client.post("/v1/upscale", content=bytes(content))
    assert answer.status_code == 413


def test_other_addresses_and_methods(client: TestClient) -> None:
    for answer, status in ((client.get("/nothing"), 404), (client.get("/v1/upscale"), 405)):
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]


def test_models_are_listed(client: TestClient, library: Upscaler) -> None:
    (row,) = client.get("/v1/models").json()["models"]
    assert (row["name"], row["scale"], row["backend"]) == ("default", library.scale, library.effective.backend)


def test_pages(client: TestClient) -> None:
    for address, words in (
        ("/", "Enlarge a picture"),
        ("/page.css", ":root"),
        ("/page.js", "EventSource"),
        ("/docs", "swagger"),
    ):
        answer = client.get(address)
        assert answer.status_code == 200
        assert words in answer.text
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    assert client.get("/", params={"answer": "<script>", "content": "<b>"}).content == client.get("/").content
    assert "https://" not in client.get("/docs").text, "nothing comes from elsewhere"
    for address in ("/swagger/swagger-ui-bundle.js", "/swagger/swagger-ui.css"):
        assert client.get(address).status_code == 200


def test_metrics_count(client: TestClient) -> None:
    client.post("/v1/upscale", content=encoded())
    client.post("/v1/upscale", content=b"no picture")
    text = client.get("/metrics").text
    for line in (
        'rdsr_requests_total{route="/v1/upscale",status="200"}', 'rdsr_rejections_total{reason="bad picture"}',
        'rdsr_stage_seconds_bucket{le="0.005",model="default",stage="decode"}',
        'rdsr_pixels_total{model="default",of="output"}',
        "process_resident_memory_bytes", "rdsr_queue_depth 0.0", "rdsr_admitted 0.0",
    ):  # fmt: skip
        assert line in text, line


# -- The queue


def test_a_full_queue_says_when_to_come_back(client: TestClient, service: Service) -> None:
    places = [service.gate.enter() for _ in range(service.options.workers + service.options.queue)]
    try:
        answer = client.post("/v1/upscale", content=encoded())
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 600
        infer = client.post("/v2/models/default/infer", content=b"{}")
        assert (infer.status_code, list(infer.json())) == (429, ["error"])
    finally:
        for _ in places:
            service.gate.leave()
    assert client.post("/v1/upscale", content=encoded()).status_code == 200


def test_bodies_of_all_clients_are_bounded(client: TestClient, service: Service) -> None:
    service._bodies += service.options.most_held - 10
    try:
        assert client.post("/v1/upscale", content=encoded()).status_code == 429
        chunked = client.post("/v1/upscale", content=iter([encoded()]))
        assert (chunked.status_code, "retry-after" in chunked.headers) == (429, True)
    finally:
        service._bodies -= service.options.most_held - 10
    service._answers += service.options.most_held + 1
    try:
        assert client.post("/v1/upscale", content=encoded()).status_code == 429
    finally:
        service._answers -= service.options.most_held + 1
    assert client.post("/v1/upscale", content=iter([encoded()])).status_code == 200
    assert "rdsr_held_bytes 0.0" in client.get("/metrics").text


def test_results_are_bounded_before_they_are_made() -> None:
    service = Service(ServiceOptions(threads=1, max_bytes=50_000))
    with TestClient(make_app(service)) as client:
        deep = bytes(cv2.imencode(".png", pixels(48, 48).astype(np.uint16) * 257)[1])
        tensor, headers = binary_request(pixels(48, 48).astype(np.float32) / 255)
        for answer in (
            client.post("/v1/upscale", content=deep),
            client.post("/v2/models/default/infer", content=tensor, headers=headers),
        ):
            assert (answer.status_code, "bytes of pixels" in answer.json()["error"]) == (413, True)
        assert client.post("/v1/upscale", content=encoded(height=48, width=48)).status_code == 200


def test_a_full_disk_is_the_services_fault(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("cannot write the result: No space left on device") from OSError(28, "No space left on device")

    monkeypatch.setattr(Upscaler, "file", full)
    answer = client.post("/v1/upscale", content=encoded())
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)


def test_nothing_begins_once_the_service_is_ending(client: TestClient, service: Service) -> None:
    service.gate.draining = True
    try:
        answer = client.post("/v1/upscale", content=encoded())
        assert (answer.status_code, answer.json()) == (503, {"error": "the service is ending"})
        assert "retry-after" in answer.headers
    finally:
        service.gate.draining = False


def test_a_request_that_nobody_waits_for_leaves_the_queue() -> None:
    async def scene() -> None:
        gate, release = Gate(1, 1), threading.Event()
        never: list[str] = []

        def gone() -> asyncio.Future[None]:
            return asyncio.get_running_loop().create_future()

        first = asyncio.ensure_future(gate.enter().work(lambda cancel: release.wait(60), time.perf_counter() + 60, gone))
        await asyncio.sleep(0)
        with pytest.raises(TooLateError):
            await gate.enter().work(lambda cancel: never.append("ran"), time.perf_counter() + 0.05, gone)
        await asyncio.sleep(0.05)
        assert gate.admitted == 1, "its place is free, while the first still works"
        release.set()
        assert await first
        await asyncio.sleep(0.05)
        assert (gate.admitted, never) == (0, [])
        gate.close()

    asyncio.run(scene())


def test_bugs_are_answered_and_logged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    with TestClient(make_app(Service(service.options)), raise_server_exceptions=False) as client:
        monkeypatch.setattr(Service, "model", broken)
        answer = client.post("/v1/upscale", content=encoded(), headers={"X-Request-ID": "abc"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "abc")
        assert answer.json() == {"error": "unexpected error: see the service's log"}
        assert 'rdsr_requests_total{route="/v1/upscale",status="500"} 1.0' in client.get("/metrics").text


def test_a_service_whose_first_picture_fails_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Models, "warm_up", broken)
    service, gave_up = Service(ServiceOptions(threads=1)), threading.Event()
    with TestClient(make_app(service, on_failure=gave_up.set)) as client:
        assert gave_up.wait(60)
        assert client.get("/v2/health/ready").status_code == 503
        assert isinstance(service.failure, ZeroDivisionError)


# -- Tensors


def request_of(picture: np.ndarray[Any, Any], **more: Any) -> dict[str, Any]:
    datatype = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FP32"}[str(picture.dtype)]
    tensor = {"name": "image", "datatype": datatype, "shape": [1, *picture.shape], "data": picture.ravel().tolist()}
    return {"inputs": [tensor], **more}


def binary_request(picture: np.ndarray[Any, Any], **more: Any) -> tuple[bytes, dict[str, str]]:
    request = request_of(picture, parameters={"binary_data_output": True}, **more)
    del request["inputs"][0]["data"]
    request["inputs"][0]["parameters"] = {"binary_data_size": picture.nbytes}
    head = json.dumps(request).encode()
    return head + picture.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize("address", ["/v2/models/default/infer", "/v2/models/default/versions/1/infer"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tensors_are_the_librarys(client: TestClient, library: Upscaler, address: str, dtype: str) -> None:
    picture = pixels(9, 7)
    if dtype != "uint8":
        picture = picture.astype(dtype) * 257 if dtype == "uint16" else (picture / np.float32(255)).astype(np.float32)
    expected = library(picture)
    answer = client.post(address, json=request_of(picture, id="42")).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("42", "default", "1")
    (output,) = answer["outputs"]
    assert (output["name"], output["shape"]) == ("upscaled", [1, *expected.shape])
    assert np.array_equal(np.array(output["data"], dtype).reshape(expected.shape), expected)
    body, headers = binary_request(picture)
    binary = client.post(address, content=body, headers=headers)
    head = int(binary.headers["inference-header-content-length"])
    assert json.loads(binary.content[:head])["outputs"][0]["parameters"] == {"binary_data_size": expected.nbytes}
    assert binary.content[head:] == expected.tobytes()


def test_several_pictures_at_once(client: TestClient, library: Upscaler) -> None:
    picture = pixels(8, 8)
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [2, 8, 8, 3],
        "data": [picture.tolist(), picture[::-1].tolist()],
    }
    (output,) = client.post("/v2/models/default/infer", json={"inputs": [tensor]}).json()["outputs"]
    both = np.array(output["data"], np.uint8).reshape(output["shape"])
    assert np.array_equal(both, np.stack([library(picture), library(np.ascontiguousarray(picture[::-1]))]))


def test_metadata_and_health(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    for address in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(address).status_code == client.head(address).status_code == 200
    for address in ("/v2/models/default", "/v2/models/default/versions/1"):
        facts = client.get(address).json()
        assert facts["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
        assert facts["outputs"][0]["name"] == "upscaled"
    for address in ("/v2/models/other", "/v2/models/default/versions/2", "/v2/models/other/ready"):
        assert client.get(address).status_code == 404


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": []}, "one tensor"), ({"inputs": [1]}, "object"), ({"id": 5}, "id"),
        ({"outputs": [{"name": "x"}]}, "output"),
        ({"name": "x"}, "input image"), ({"datatype": "FP64"}, "datatype"), ({"datatype": ["UINT8"]}, "datatype"),
        ({"shape": [1, 2, 2]}, "shape"), ({"shape": [1, 2, 2, 4]}, "shape"), ({"shape": [1, True, 2, 3]}, "whole number"),
        ({"shape": [1, 2, 2**30, 3]}, "pixels"), ({"data": [1]}, "12 numbers"), ({"data": [[1], [2, 3]]}, "data"),
        ({"data": [256] * 12}, "0 to 255"), ({"data": [0.5] * 12}, "datatype"), ({"data": "x"}, "neither data"),
        ({"data": ["1"] * 12}, "12 numbers"), ({"data": ["x" * 10_000] + [0] * 11}, "12 numbers"),
        ({"data": [True] * 12}, "12 numbers"), ({"data": [[[[0] * 3, [0] * 3], [[0] * 3, [0] * 2]]]}, "nested"),
        ({"data": None}, "neither data"), ({"parameters": 3}, "parameters"), ({"data": [2**70] * 12}, "data"),
    ],
)  # fmt: skip
def test_requests_that_make_no_sense(client: TestClient, change: dict[str, Any], words: str) -> None:
    request = request_of(pixels(2, 2))
    for key, value in change.items():
        (request if key in ("inputs", "id", "outputs") else request["inputs"][0])[key] = value
    answer = client.post("/v2/models/default/infer", json=request)
    assert answer.status_code == (413 if words == "pixels" else 400)
    assert words in answer.json()["error"]


def test_binary_requests_that_make_no_sense(client: TestClient) -> None:
    body, headers = binary_request(pixels(2, 2))
    name = "Inference-Header-Content-Length"
    for content, length in (
        (body[:-1], headers[name]),
        (body, "1"),
        (body, "9999999"),
        (body, "x"),
        (body, "-1"),
        (body + b"0", headers[name]),
    ):
        assert client.post("/v2/models/default/infer", content=content, headers={name: length}).status_code == 400
    assert client.post("/v2/models/default/infer", content=b"[" * 100_000).status_code == 400
    compressed = client.post("/v2/models/default/infer", content=body, headers={"Content-Encoding": "gzip"})
    assert "compressed" in compressed.json()["error"]


def test_an_id_may_be_null(client: TestClient) -> None:
    answer = client.post("/v2/models/default/infer", json=request_of(pixels(2, 2), id=None))
    assert "id" not in answer.json()


def test_long_json_is_refused(client: TestClient) -> None:
    body = json.dumps(request_of(pixels(2, 2))).encode()
    service = TestClient(make_app(Service(ServiceOptions(threads=1))))
    answer = service.post("/v2/models/default/infer", content=body + b" " * 2**21)
    assert (answer.status_code, "binary" in answer.json()["error"]) == (400, True)


def test_numbers_are_written_as_json_writes_them() -> None:
    array = np.random.RandomState(0).random_sample((100, 100, 3)).astype(np.float32)
    body, head = write_response([array], "m", "1", "", binary=False)
    assert head is None
    assert np.array_equal(np.array(json.loads(bytes(body))["outputs"][0]["data"], np.float32), array.ravel())
    with pytest.raises(TensorError, match="binary"):
        write_response([np.zeros((1200, 1200, 3), np.uint8)], "m", "1", "", binary=False)
    with pytest.raises(TensorError, match="no JSON"):
        read_request(b"{", None, 10)
