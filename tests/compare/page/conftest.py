"""A page of four runs in a real browser, started once for all files that look at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from dbexp.compare.write import ComparisonFiles, write_comparison
from tests.compare import sweeps

if TYPE_CHECKING:
    from selenium import webdriver

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    """What the browser shows: two ranks, two weights, one seed."""
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"), {"lora.rank": (4, 8), "prior.weight": (0, 1)})
    return write_comparison([folder], "dino")


@pytest.fixture(scope="session")
def browser(shown: ComparisonFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """At the page."""
    if not (BROWSER and DRIVER):
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    pytest.importorskip("selenium", reason="needs selenium: pip install '.[test]'")
    from selenium import webdriver

    from tests.compare.page.browsing import PATIENCE, find, wait

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    profile = tmp_path_factory.mktemp("profile")
    for switch in (*SWITCHES, "--window-size=1440,900", f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.page_load_strategy = "none"  # the page says itself when it is ready
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_script_timeout(PATIENCE)
    try:
        driver.get(shown.page.resolve().as_uri())
        wait(driver, lambda b: find(b, "html[data-ready='yes']"))
        yield driver
    finally:
        driver.quit()
