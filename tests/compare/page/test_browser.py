"""The page in a real browser: sorted, filtered, pointed at and clicked, without an error and without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dbexp.compare.write import ComparisonFiles, write_comparison
from tests.compare import sweeps

pytest.importorskip("selenium", reason="needs selenium: pip install '.[test]'")
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)
PATIENCE = 300  # seconds; a quiet machine needs few of them
SWITCHES = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"), {"lora.rank": (4, 8), "prior.weight": (0, 1)})
    return write_comparison([folder], "dino")


@pytest.fixture(scope="module")
def browser(files: ComparisonFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(BROWSER)
    profile = tmp_path_factory.mktemp("profile")
    for switch in (*SWITCHES, "--window-size=1440,900", f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.page_load_strategy = "none"  # the page says itself when it is ready
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_script_timeout(PATIENCE)
    try:
        driver.get(files.page.resolve().as_uri())
        wait(driver, lambda b: find(b, "html[data-ready='yes']"))
        yield driver
    finally:
        driver.quit()


def wait(browser: webdriver.Chrome, condition: Any) -> Any:
    """What `condition(browser)` gives, once it is true."""
    return WebDriverWait(browser, PATIENCE).until(condition)


def find(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def show(browser: webdriver.Chrome, selector: str) -> WebElement:
    """Scroll to a part of the page, as a reader does."""
    (element,) = find(browser, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def runs_shown(browser: webdriver.Chrome) -> list[str]:
    """Ids of the rows of the table that can be seen, from above."""
    rows = find(browser, "#runs tbody tr[data-run]")
    return [str(row.get_attribute("data-run")) for row in rows if row.is_displayed()]


def test_a_click_on_a_heading_sorts(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    value = {entry.id: entry.run.value("pres") for entry in files.comparison.finished}
    values = [value[run] for run in runs_shown(browser)]
    assert values != sorted(values)
    (heading,) = [element for element in find(browser, "#runs thead button") if element.text.startswith("PRES")]
    heading.click()
    assert [value[run] for run in runs_shown(browser)] == sorted(values), "lower is better, so it comes first"
    heading.click()
    assert [value[run] for run in runs_shown(browser)] == sorted(values, reverse=True)


def test_a_click_on_a_value_hides_its_runs(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    (level,) = find(browser, "#filter button[data-factor='lora.rank'][data-level='8']")
    level.click()
    runs = {entry.id for entry in files.comparison.finished if entry.settings["lora.rank"] == "4"}
    assert len(runs) == 2 and set(runs_shown(browser)) == runs
    assert find(browser, "#count")[0].text == "2 of 4 runs shown"
    level.click()
    assert len(runs_shown(browser)) == 4


def test_a_point_of_the_front_tells_its_run(browser: webdriver.Chrome) -> None:
    show(browser, ".plot[data-key='front']")
    points = wait(browser, lambda b: find(b, ".plot[data-key='front'].js-drawn .scatterlayer .point"))
    assert len(points) == 4
    ActionChains(browser).move_to_element(points[-1]).perform()
    label = wait(browser, lambda b: "".join(element.text for element in find(b, ".plot[data-key='front'] .hoverlayer")))
    assert "rank=" in label and "PRES" in label


def test_pictures_change_with_the_seed_and_are_enlarged(browser: webdriver.Chrome) -> None:
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))

    def sources() -> list[str | None]:
        return [image.get_attribute("src") for image in find(browser, "#sheet tbody tr:first-child img")]

    first = sources()
    assert len(first) == 5, "the base model and four runs"
    Select(find(browser, "#seed-choice")[0]).select_by_index(1)
    assert len(sources()) == 5 and set(sources()).isdisjoint(first)
    shot = find(browser, "#sheet tbody tr:first-child .shot")[1]
    shot.click()
    wait(browser, lambda b: find(b, "#large[open]"))
    assert sweeps.PROMPTS[0] in find(browser, "#large figcaption")[0].text
    find(browser, "#large img")[0].click()
    assert not find(browser, "#large[open]")


def test_arrow_keys_flip_through_a_row_and_between_prompts(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    """Photograph, base model and runs at one prompt and seed: the caption says which."""
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    find(browser, "#sheet tbody tr:first-child .shot")[0].click()
    wait(browser, lambda b: find(b, "#large[open]"))
    (large,) = find(browser, "#large")

    def words() -> str:
        return find(browser, "#large figcaption")[0].text

    assert words().startswith("base model") and find(browser, "#large .count")[0].text == "2 of 6"
    seen = []
    for _ in range(6):
        large.send_keys(Keys.ARROW_RIGHT)
        seen.append(words().split(" · ")[0].removesuffix(" the file"))
    best_first = [entry.title for entry in files.comparison.finished]
    assert seen == [*best_first, "a photograph of the subject", "base model"]
    large.send_keys(Keys.ARROW_DOWN)
    assert sweeps.PROMPTS[1] in words() and words().startswith("base model")
    large.send_keys(Keys.ARROW_UP)
    large.send_keys(Keys.ARROW_UP)
    assert sweeps.PROMPTS[-1] in words(), "the first row is followed by the last"
    large.send_keys(Keys.ESCAPE)
    wait(browser, lambda b: not find(b, "#large[open]"))


def test_the_opening_shows_every_setting_on_the_same_prompt(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    show(browser, "#opening")
    wait(browser, lambda b: find(b, "#opening tbody tr img"))
    headings = [element.text.replace("\n", " ") for element in find(browser, "#opening thead th")]
    assert headings[1:3] == ["photograph", "base model " + headings[2].removeprefix("base model ")]
    assert len(headings) == 1 + 2 + len(files.comparison.standings)
    for heading, standing in zip(headings[3:], files.comparison.standings, strict=True):
        assert standing.title in heading and f"DINO {standing.moments['dino'].mean:.3f}" in heading
    assert len(find(browser, "#opening tbody tr:first-child .shot")) == 6


def test_ticked_runs_stand_side_by_side_and_in_the_address(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    chosen = [entry.id for entry in files.comparison.finished][1:3]
    for run in chosen:
        show(browser, f".choose[value='{run}']").click()
    shown = [h.get_attribute("data-run") for h in find(browser, "#sheet thead th[data-run]") if h.is_displayed()]
    assert shown == chosen
    assert len(runs_shown(browser)) == 4, "the others can still be ticked"
    assert f"#run={chosen[0]}&run={chosen[1]}" in browser.current_url
    show(browser, "#clear").click()
    assert "run=" not in browser.current_url
    assert all(heading.is_displayed() for heading in find(browser, "#sheet thead th[data-run]"))


def test_an_address_brings_its_view_back(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    browser.execute_script("location.hash = 'hide=lora.rank%3D8&menu=seed-choice%3D1'")
    ranks = {entry.id: entry.settings["lora.rank"] for entry in files.comparison.finished}
    wait(browser, lambda b: {ranks[run] for run in runs_shown(b)} == {"4"})
    assert Select(find(browser, "#seed-choice")[0]).first_selected_option.get_attribute("value") == "1"
    browser.execute_script("location.hash = ''")
    wait(browser, lambda b: len(runs_shown(b)) == 4)
    assert Select(find(browser, "#seed-choice")[0]).first_selected_option.get_attribute("value") == "0"


def test_the_heat_map_changes_its_column(browser: webdriver.Chrome) -> None:
    menu = Select(show(browser, "select[data-chart='prompts']"))
    wait(browser, lambda b: find(b, ".plot[data-key='prompts'].js-drawn"))
    menu.select_by_index(1)
    data = "document.querySelector('.plot[data-key=prompts]').data"
    visible = browser.execute_script(f"return {data}.map((trace) => trace.visible)")
    assert visible[1] is True and not any(visible[:1] + visible[2:])
    level = show(browser, "#filter button[data-factor='lora.rank'][data-level='8']")
    level.click()
    assert browser.execute_script(f"return [{data}[1].x.length, {data}[1].z[0].length]") == [2, 2]
    level.click()
    assert browser.execute_script(f"return {data}[1].x.length") == 4


def test_on_a_telephone_nothing_sticks_out_and_axes_keep_their_distance(browser: webdriver.Chrome) -> None:
    screen = {"width": 400, "height": 850, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        wide = browser.execute_script(
            "return [...document.querySelectorAll('#effects, #effects *, h2, .lead, .controls')]"
            ".filter((one) => one.getBoundingClientRect().right > 400).map((one) => one.outerHTML.slice(0, 200))"
        )
        assert wide == []
        # plots that were drawn before take a moment to follow
        wait(browser, lambda b: b.execute_script("return document.scrollingElement.scrollWidth") == 400)
        show(browser, ".plot[data-key='parallel']")
        wait(browser, lambda b: find(b, ".plot[data-key='parallel'].js-drawn .axis-title"))
        titles = [element.rect for element in find(browser, ".plot[data-key='parallel'] .axis-title")]
        edges = sorted((title["x"], title["x"] + title["width"]) for title in titles)
        assert len(edges) == 7 and all(left[1] < right[0] for left, right in pairwise(edges))
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_error_and_no_request_leaves_the_machine(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The last, so that it judges what the clicks of the others did, too."""
    for plot in find(browser, ".plot"):  # each is drawn when it comes into sight
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
        wait(browser, lambda _, plot=plot: "js-drawn" in str(plot.get_attribute("class")))
    read: Callable[[str], Any] = browser.get_log
    assert [entry["message"] for entry in read("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(entry["message"])["message"] for entry in read("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.startswith("file:") for url in urls), "requests are not on record, so none can be judged"
    # chrome: is the browser's own, such as the tab that it starts with
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:", "chrome:"))] == []
