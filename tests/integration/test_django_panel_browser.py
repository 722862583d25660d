"""The Debug Toolbar's panel in a real browser.

A picture of it is left at the path in TOOLBAR_SCREENSHOT, for a person to look at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kerneltrace_core
from integration.postgres import free_port
from kerneltrace_core.kernel.support import Support

TESTS = Path(__file__).parents[1]
SOURCE = Path(kerneltrace_core.__file__).parents[1]
SECONDS = 60.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1280,1500"),
)
PANEL = "KernelPanel"

pytestmark = [pytest.mark.deadline(180)]


def browser_probe() -> Support:
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return Support.no(f"{program} is not installed (Debian: chromium, chromium-driver)")
    return Support.yes()


@contextmanager
def site(folder: Path, **variables: str) -> Iterator[str]:
    """Serve the site of `django_toolbar`, and yield its address once it traces."""
    port = free_port()
    paths = (os.environ.get("PYTHONPATH"), str(TESTS), str(SOURCE))
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "integration.django_toolbar", str(port)],
            stdout=log,
            stderr=log,
            cwd="/",
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "TOOLBAR_FOLDER": str(folder),
                **variables,
            },
        )
    address = f"http://127.0.0.1:{port}/"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        until = time.monotonic() + SECONDS
        while True:
            try:
                opener.open(address, timeout=SECONDS).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < until, (folder / "server.log").read_text()
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
    try:
        yield driver
    finally:
        driver.quit()


def open_panel(driver: Any, address: str) -> tuple[Any, str]:
    """Load the page, open the panel; return its element when it has content, and its subtitle."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(address)
    wait = WebDriverWait(driver, 30)

    def find(selector: str) -> Any:
        # From version 7 on the toolbar lives in a shadow tree.
        roots = driver.find_elements(By.CSS_SELECTOR, "#djDebugRoot")
        root = roots[0].shadow_root if roots else driver
        return wait.until(lambda _: root.find_element(By.CSS_SELECTOR, selector))

    wait.until(lambda _: find("#djDebug").is_displayed())
    if not find("#djDebugToolbar").is_displayed():
        find("#djShowToolBarButton").click()
    subtitle = find(f"#djdt-{PANEL} small").text
    find(f"a.{PANEL}").click()
    wait.until(lambda _: find(f"#{PANEL} .djdt-scroll").text)
    return find(f"#{PANEL}"), subtitle


@pytest.fixture
def _browser(require: Callable[..., None]) -> None:
    require("thread_registration")
    require("chromium", probe=browser_probe)


@pytest.mark.usefixtures("_browser")
def test_the_panel_shows_the_ledger_of_the_page(tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    picture = Path(os.environ.get("TOOLBAR_SCREENSHOT") or tmp_path / "panel.png")
    with site(tmp_path) as address, chromium(tmp_path / "profile") as driver:
        panel, subtitle = open_panel(driver, address)
        told = panel.text
        bars = panel.find_element(By.CSS_SELECTOR, "svg").find_elements(By.CSS_SELECTOR, "rect")
        widths = [float(bar.get_attribute("width") or 0) for bar in bars]
        driver.save_screenshot(str(picture))
        complaints = [each for each in driver.get_log("browser") if each["level"] == "SEVERE"]

    # The first is the ground; the parts fill it but for what rounding takes.
    assert sum(widths[1:]) == pytest.approx(widths[0], rel=0.01)
    assert "blocked" in subtitle
    for words in ("on cpu", "blocked by", "network", "default", "fsync", "measured by bpf"):
        assert words in told.lower()  # headings are upper-case in some versions
    assert picture.stat().st_size > 10_000
    assert [each for each in complaints if "favicon" not in each["message"]] == []
