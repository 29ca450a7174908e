"""The page at `/` in a real browser, without a screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rdsr.runtime import Upscaler
from rdsr.tests.runtime.service.running import Running, running

CHROMIUM = shutil.which("chromium")
SAMPLE = Path(__file__).parents[3] / "export/samples/LRx4/portrait.png"
SHOTS = os.environ.get("RDSR_SCREENSHOTS")
"""Folder for the pictures of the documentation; none are taken by default."""
PATIENCE = 120_000
"""Milliseconds, for a machine that is busy with other things."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), "--threads", "1", "--memory-limit", "512MiB") as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(service: Running, browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith((service.address, "blob:", "data:")) or wrong.append(request.url)
    )
    page.goto(service.address)
    expect(page.locator("#model option")).to_have_count(1)
    yield page
    page.close()
    assert wrong == []


def status(page: Page, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words, timeout=PATIENCE)


def drop(page: Page, content: bytes, name: str) -> None:
    """Drop a file on the page, as a hand would."""
    page.evaluate(
        """([bytes, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            document.body.dispatchEvent(new DragEvent("dragover", {dataTransfer: data, bubbles: true, cancelable: true}));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        [list(content), name],
    )


def large() -> bytes:
    """A small file of a large picture, which takes seconds."""
    return bytes(cv2.imencode(".png", np.full((1800, 1800, 3), 90, np.uint8))[1])


def test_drop_compare_and_download(page: Page, tmp_path: Path) -> None:
    drop(page, SAMPLE.read_bytes(), SAMPLE.name)
    status(page, "Done: ")
    height, width = cv2.imread(str(SAMPLE)).shape[:2]
    after, before = page.locator("#after"), page.locator("#before")
    assert after.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [4 * width, 4 * height]
    assert after.bounding_box()["width"] == before.bounding_box()["width"] == 4 * width, "at 100 %"  # type: ignore[index]
    slider = page.locator("#slider")
    slider.focus()
    for key, cut in (("ArrowRight", f"{round(0.51 * 4 * width)}px"), ("End", f"{4 * width}px"), ("Home", "0px")):
        page.keyboard.press(key)
        assert page.locator("#stack").evaluate("stack => stack.style.getPropertyValue('--cut')") == cut
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download").click()
    downloading.value.save_as(tmp_path / "larger.png")
    assert downloading.value.suggested_filename == f"{SAMPLE.stem}-larger.png"
    assert (tmp_path / "larger.png").read_bytes() == Upscaler.load(threads=1).encoded(SAMPLE.read_bytes(), "png")


def test_choose_a_file_and_another_format(page: Page) -> None:
    page.locator("#file").set_input_files(SAMPLE)
    status(page, "Done: ")
    page.get_by_label("Format").select_option("tif")
    page.get_by_role("button", name="Enlarge again").click()
    status(page, "Browsers do not show this format")
    expect(page.locator("#result")).to_be_hidden()


def test_cancel(page: Page, service: Running) -> None:
    drop(page, large(), "large.png")
    status(page, "tiles")
    page.get_by_role("button", name="Cancel").click()
    status(page, "Cancelled.")
    expect(page.get_by_role("button", name="Enlarge again")).to_be_enabled()
    service.waited("request", path="/v1/upscale", status=499)


def test_what_is_wrong_is_said(page: Page) -> None:
    drop(page, b"no picture", "x.png")
    status(page, "known format")
    expect(page.locator("#status")).to_have_class("wrong")


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page: Page) -> None:
    drop(page, SAMPLE.read_bytes(), SAMPLE.name)
    status(page, "Done: ")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"file", "model", "format", "again", "download", "slider", "view"} <= set(reached)
    for role, name in (("slider", "Where before ends"), ("combobox", "Model"), ("combobox", "Format"), ("status", "")):
        expect(page.get_by_role(role, name=name)).to_have_count(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {"color_scheme": "light", "viewport": {"width": 1100, "height": 900}}),
        ("dark", {"color_scheme": "dark", "viewport": {"width": 1100, "height": 900}}),
        ("phone", {"color_scheme": "light", "viewport": {"width": 390, "height": 844}}),
    ],
)
def test_it_fits_every_screen(service: Running, browser: Browser, name: str, options: dict[str, Any]) -> None:
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    page.goto(service.address)
    drop(page, SAMPLE.read_bytes(), SAMPLE.name)
    status(page, "Done: ")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is wider than the screen"
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body.parentElement).backgroundColor, getComputedStyle(document.body).color]"
    )
    behind, text = (sum(int(part) for part in colour[4:-1].split(",")[:3]) for colour in (ground, ink))
    assert (behind > text) == (name != "dark")
    assert abs(behind - text) > 400, "text can be read"
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/page-{name}.png")
    page.close()
