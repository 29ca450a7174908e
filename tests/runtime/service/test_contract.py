"""What others' tools find: a client of Triton, and requests made from the service's own OpenAPI description."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import schemathesis
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rdsr.runtime import Upscaler
from rdsr.tests.runtime.service.mutated_bodies import send_mutated
from rdsr.tests.runtime.service.running import Running, running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), "--threads", "1", "--max-pixels", "10000") as service:
        yield service


@pytest.mark.parametrize("binary", [True, False])
def test_a_client_of_triton_gets_the_librarys_bytes(service: Running, binary: bool) -> None:
    client = triton.InferenceServerClient(service.address.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("default")
        metadata = client.get_model_metadata("default")
        picture = np.random.RandomState(0).randint(0, 256, (1, 19, 23, 3)).astype(np.uint8)
        given = triton.InferInput(metadata["inputs"][0]["name"], picture.shape, metadata["inputs"][0]["datatype"])
        given.set_data_from_numpy(picture, binary_data=binary)
        wanted = triton.InferRequestedOutput(metadata["outputs"][0]["name"], binary_data=binary)
        answer = client.infer("default", [given], outputs=[wanted]).as_numpy("upscaled")
        assert np.array_equal(answer[0], Upscaler.load(threads=1)(picture[0]))
    finally:
        client.close()


EXAMPLES = 40
"""Of each operation; more are made by `make fuzz`."""


def test_no_request_finds_a_fault(service: Running) -> None:
    """Right and wrong requests, made from the description: no 5xx, and no answer that it does not describe."""
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 12
    for operation in operations:
        if "/progress/" in operation.path:  # waits half a minute for a request of its id
            continue

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS, timeout=120)

        check()


def test_mutated_bodies_find_no_fault(service: Running) -> None:
    """A few; `make check-large` sends ten thousand."""
    answers = send_mutated(service.client, 300, seed=0)
    assert {200, 400, 422} <= set(answers)
    assert service.client.get("/v2/health/ready").status_code == 200
