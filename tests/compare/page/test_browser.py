"""The page in a real browser: sorted, filtered, pointed at and clicked, without an error and without a network."""

from __future__ import annotations

import csv
import io
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
from selenium.webdriver.common.actions.action_builder import ActionBuilder
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


def test_beside_every_picture_is_the_photograph_nearest_to_it(
    browser: webdriver.Chrome, files: ComparisonFiles
) -> None:
    """And the arrow keys come to the same photograph; `p` puts it into the picture's place."""
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    Select(find(browser, "#seed-choice")[0]).select_by_index(0)
    best = files.comparison.finished[0]
    assert best.run.report is not None
    of_prompt = [image for image in best.run.report.images if image.row == "run" and image.prompt == sweeps.PROMPTS[0]]
    scores = of_prompt[0]
    assert scores.nearest is not None and len({image.nearest for image in best.run.report.images}) > 1
    photograph = f"/{best.run.folder.name}/{scores.nearest}"
    find(browser, f"#sheet tbody tr:first-child [data-run='{best.id}'] .shot")[0].click()
    wait(browser, lambda b: find(b, "#large[open]"))

    def part(of: str) -> tuple[str, str, int]:
        (image,), (words,), (link,) = (find(browser, f"#{of} {what}") for what in ("img", "figcaption", "a"))
        return words.text, str(link.get_attribute("href")), image.size["width"]

    (words, file, width), (about, beside, small) = part("shown"), part("nearest")
    assert words.startswith(best.title) and file.endswith(f"/{scores.path}") and beside.endswith(photograph)
    assert about == f"nearest photograph · DINO {scores.values['dino_max']:.3f} the file" and small < width
    (large,) = find(browser, "#large")
    large.send_keys("p")
    assert part("shown")[2] == small and part("nearest")[2] == width
    large.send_keys(Keys.HOME)  # no key of the lightbox
    large.send_keys(Keys.ARROW_LEFT)
    large.send_keys(Keys.ARROW_LEFT)
    words, file, _ = part("shown")
    assert words.startswith(f"a photograph of the subject · nearest to {best.title}") and file.endswith(photograph)
    assert not find(browser, "#nearest")[0].is_displayed(), "a photograph is nearest to itself"
    large.send_keys(Keys.ESCAPE)
    wait(browser, lambda b: not find(b, "#large[open]"))


def test_pictures_are_arranged_by_two_parameters(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    Select(find(browser, "#axes-choice")[0]).select_by_visible_text("weight ↓ rank →")
    Select(find(browser, "#prompt-choice")[0]).select_by_visible_text(sweeps.PROMPTS[2])
    rows = find(browser, "#sheet [data-lazy] tr")
    heads = [cell.text for cell in rows[0].find_elements(By.CSS_SELECTOR, "th")]
    assert heads[0].startswith("base model") and heads[1:] == ["rank=4", "rank=8"]
    by_id = {entry.id: entry for entry in files.comparison.finished}
    for row in rows[1:]:
        weight = row.find_element(By.CSS_SELECTOR, "th").text.removeprefix("weight=")
        cells = row.find_elements(By.CSS_SELECTOR, "td")
        for cell, rank in zip(cells, ("4", "8"), strict=True):
            (shown,) = cell.find_elements(By.CSS_SELECTOR, "[data-run]")
            settings = by_id[str(shown.get_attribute("data-run"))].settings
            assert (settings["prior.weight"], settings["lora.rank"]) == (weight, rank)
            title = shown.find_element(By.CSS_SELECTOR, ".shot").get_attribute("title")
            assert title is not None and sweeps.PROMPTS[2] in title
    assert "menu=axes-choice" in browser.current_url
    Select(find(browser, "#axes-choice")[0]).select_by_index(0)


def test_runs_are_found_by_words_and_by_comparisons(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    field = show(browser, "#find")
    field.send_keys("rank = 4, DINO > 0")
    runs = {entry.id for entry in files.comparison.finished if entry.settings["lora.rank"] == "4"}
    assert set(runs_shown(browser)) == runs and "find=" in browser.current_url
    field.clear()
    field.send_keys("dino < 0")
    assert runs_shown(browser) == []
    field.clear()
    field.send_keys(" ", Keys.BACKSPACE)
    assert len(runs_shown(browser)) == 4 and "find=" not in browser.current_url


def test_a_table_is_saved_as_it_is_seen(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    browser.execute_script("URL.createObjectURL = (blob) => { window.saved = blob; return '#'; }")
    show(browser, ".save[data-table='runs']").click()
    text = browser.execute_async_script("window.saved.text().then(arguments[0])")
    head, *rows = csv.DictReader(io.StringIO(text)), *csv.DictReader(io.StringIO(text))
    assert head.fieldnames is not None and {"run", "rank", "weight", "DINO ↑", "PRES ↓"} <= set(head.fieldnames)
    dino = {row["run"].split(" ")[0]: row["DINO ↑"] for row in rows}
    for entry in files.comparison.finished:
        assert float(dino[entry.id]) == pytest.approx(entry.run.value("dino"), abs=1e-9)


def test_the_opening_is_a_table_of_settings_with_pictures(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    """A column per setting, best first: its values, its scores as results.csv has them, the same prompts."""
    show(browser, "#opening")
    wait(browser, lambda b: find(b, "#opening tbody tr img"))
    head, *lines = find(browser, "#opening tr")

    def cells(row: WebElement) -> list[str]:
        return [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]

    standings = files.comparison.standings
    assert cells(head) == ["place", "photograph", "base model", "take", "2", "3", "4"]
    titles = [cell.get_attribute("title") for cell in head.find_elements(By.CSS_SELECTOR, "th")][2:]
    assert titles == [standing.title for standing in standings]
    rows = {name: values for name, *values in map(cells, lines)}
    assert rows["rank"] == ["", "", *(standing.settings["lora.rank"] for standing in standings)]
    assert rows["weight"] == ["", "", *(standing.settings["prior.weight"] for standing in standings)]
    assert rows["DINO ↑"][2:] == [f"{standing.moments['dino'].mean:.3f}" for standing in standings]
    (base,) = [reference for reference in files.comparison.references if reference.key == "base"]
    assert rows["DINO ↑"][:2] == ["", f"{base.columns['dino'].value:.3f}"]
    drawn = find(browser, "#opening .drawn")
    assert [len(row.find_elements(By.CSS_SELECTOR, ".shot")) for row in drawn] == [6, 6]


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


def test_columns_are_chosen_and_stand_in_the_address(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    def headings() -> list[str]:
        return [heading.text for heading in find(browser, "#runs thead th") if heading.is_displayed()]

    usual = headings()
    assert "PRES ↓" in usual and "DINO max ↑" not in usual
    show(browser, "#columns summary").click()
    (menu,) = find(browser, "#columns")
    for column in ("pres", "dino_max"):
        menu.find_element(By.CSS_SELECTOR, f"input[value='{column}']").click()
    chosen = [*(heading for heading in usual if heading != "PRES ↓"), "DINO max ↑"]
    assert headings() == chosen
    best = files.comparison.finished[0]
    (cell,) = find(browser, f"#runs tr[data-run='{best.id}'] td[data-column='dino_max']")
    assert cell.text.split(" ")[0] == f"{best.run.value('dino_max'):.3f}"
    address = browser.current_url
    menu.find_element(By.CSS_SELECTOR, "[data-usual]").click()
    assert headings() == usual and "columns=" not in browser.current_url
    browser.execute_script("location.hash = arguments[0]", address.partition("#")[2])
    wait(browser, lambda b: headings() == chosen)
    menu.find_element(By.CSS_SELECTOR, "[data-usual]").click()
    find(browser, "#columns summary")[0].click()


def test_the_order_of_a_table_stands_in_the_address(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    first = runs_shown(browser)
    by_weight = sorted(files.comparison.finished, key=lambda entry: float(entry.settings["prior.weight"]))
    browser.execute_script("location.hash = 'sort=runs+ascending+weight'")
    weights = [entry.settings["prior.weight"] for entry in by_weight]
    settings = {entry.id: entry.settings["prior.weight"] for entry in files.comparison.finished}
    wait(browser, lambda b: [settings[run] for run in runs_shown(b)] == weights)
    (heading,) = [element for element in find(browser, "#runs thead button") if element.text.startswith("weight")]
    heading.click()
    assert "sort=runs+descending+weight" in browser.current_url
    browser.execute_script("location.hash = ''")
    wait(browser, lambda b: runs_shown(b) == first)


def test_the_bar_says_what_is_shown_and_brings_all_of_it_back(browser: webdriver.Chrome) -> None:
    show(browser, "#filter button[data-factor='lora.rank'][data-level='8']").click()
    show(browser, "#find").send_keys("weight = 1")
    shown = runs_shown(browser)
    assert len(shown) == 1 and find(browser, "#count")[0].text == "1 of 4 runs shown"
    (link,) = [link for link in find(browser, "#bar a") if link.text == "Plots"]
    link.click()
    wait(
        browser,
        lambda b: b.execute_script(
            "return Math.abs(document.querySelector('#plots').getBoundingClientRect().top) < 200"
        ),
    )
    assert "hide=lora.rank" in browser.current_url and runs_shown(browser) == shown, "a link is no change of view"
    wait(browser, lambda b: [link.text for link in find(b, "#bar a[aria-current]")] == ["Plots"])
    find(browser, "#clear")[0].click()
    assert len(runs_shown(browser)) == 4 and "#" not in browser.current_url
    assert find(browser, "#count")[0].text == "" and not find(browser, "#clear")[0].is_displayed()


def test_a_run_has_all_of_it_on_a_card(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    entry = files.comparison.finished[1]
    (button,) = [each for each in find(browser, "#runs .open") if each.text == entry.id]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    (card,) = wait(browser, lambda b: find(b, "#run-card[open]"))
    assert card.find_element(By.CSS_SELECTOR, "h2").text == entry.title
    names, values = (find(browser, f"#run-card {tag}") for tag in ("dt", "dd"))
    told = {name.text: value.text for name, value in zip(names, values, strict=True)}
    assert told["lora.rank"] == entry.settings["lora.rank"]
    for column, title in (("dino", "DINO ↑"), ("pres", "PRES ↓"), ("dino_max", "DINO max ↑")):
        assert told[title].split(" ")[0] == f"{entry.run.value(column):.3f}"
    assert len(card.find_elements(By.CSS_SELECTOR, ".shot img")) == len(sweeps.PROMPTS)
    folder = str(card.find_element(By.CSS_SELECTOR, "a").get_attribute("href"))
    assert folder == entry.run.folder.resolve().as_uri()
    card.find_element(By.CSS_SELECTOR, ".shot").click()
    wait(browser, lambda b: find(b, "#large[open]"))
    find(browser, "#large")[0].send_keys(Keys.ESCAPE)
    wait(browser, lambda b: not find(b, "#large[open]"))
    find(browser, "#run-close")[0].click()
    assert not find(browser, "#run-card[open]")


def test_light_and_dark_are_remembered(browser: webdriver.Chrome) -> None:
    stored = "return [document.documentElement.dataset.theme, localStorage.getItem('dbexp-theme')]"
    system, nothing = browser.execute_script(stored)
    assert nothing is None
    other = {"light": "dark", "dark": "light"}[system]
    find(browser, "#theme")[0].click()
    assert browser.execute_script(stored) == [other, other]
    find(browser, "#theme")[0].click()
    assert browser.execute_script(stored) == [system, None], "the system's choice needs no memory"


def test_a_click_on_a_point_opens_its_run(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    show(browser, ".plot[data-key='front']")
    points = wait(browser, lambda b: find(b, ".plot[data-key='front'].js-drawn .scatterlayer .point"))
    ActionChains(browser).move_to_element(points[-1]).pause(0.3).click().perform()
    (card,) = wait(browser, lambda b: find(b, "#run-card[open]"))
    title = card.find_element(By.CSS_SELECTOR, "h2").text
    assert title in {entry.title for entry in files.comparison.finished}
    card.send_keys(Keys.ESCAPE)
    wait(browser, lambda b: not find(b, "#run-card[open]"))


def test_any_two_columns_are_put_on_the_axes(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    show(browser, ".plot[data-key='front']")
    wait(browser, lambda b: find(b, ".plot[data-key='front'].js-drawn"))
    (section,) = find(browser, "section.chart:has(.plot[data-key='front'])")
    title = section.find_element(By.CSS_SELECTOR, ".title")
    note = section.find_element(By.CSS_SELECTOR, ".note")
    assert title.text == "DINO against CLIP-T" and note.is_displayed()
    menu = Select(find(browser, "#front-y")[0])
    menu.select_by_value("pres")
    assert title.text == "PRES against CLIP-T" and not note.is_displayed(), "what is up is no longer the subject"
    read = (
        "const {data, layout} = document.querySelector('.plot[data-key=front]'); return [data, layout.yaxis.title.text]"
    )
    data, heading = browser.execute_script(read)
    assert heading == "PRES ↓" and "menu=front-y%3Dpres" in browser.current_url
    points = {trace["meta"]["run"]: trace for trace in data if "meta" in trace and "run" in trace["meta"]}
    for entry in files.comparison.finished:
        x, y = points[entry.id]["x"][0], points[entry.id]["y"][0]
        assert (x, y) == pytest.approx((entry.run.value("clip_t"), entry.run.value("pres")))
    assert [trace["visible"] for trace in data if "meta" not in trace] == [False], "the front is one of other columns"
    menu.select_by_index(0)
    assert title.text == "DINO against CLIP-T" and note.is_displayed()


def test_what_is_drawn_along_an_axis_chooses_runs_everywhere(browser: webdriver.Chrome, files: ComparisonFiles) -> None:
    show(browser, ".plot[data-key='parallel']")
    wait(browser, lambda b: find(b, ".plot[data-key='parallel'].js-drawn"))
    node = "document.querySelector('.plot[data-key=parallel]')"
    labels = browser.execute_script(f"return {node}.data[0].dimensions.map(({{label}}) => label)")
    values = sorted(entry.run.value("dino") for entry in files.comparison.finished)
    middle = (values[1] + values[2]) / 2
    change = f"Plotly.restyle({node}, {{'dimensions[{labels.index('DINO ↑')}].constraintrange': [[{middle}, 9]]}})"
    browser.execute_script(change)
    best = {entry.id for entry in files.comparison.finished if entry.run.value("dino") > middle}
    wait(browser, lambda b: set(runs_shown(b)) == best)
    assert len(best) == 2 and "brush=DINO" in browser.current_url
    assert browser.execute_script(f"return {node}.data[0].line.color.length") == 4, "here the others are grey"
    address = browser.current_url.partition("#")[2]
    find(browser, "#clear")[0].click()
    assert len(runs_shown(browser)) == 4 and "brush" not in browser.current_url
    ranges = f"return {node}.data[0].dimensions.filter(({{constraintrange}}) => constraintrange).length"
    assert browser.execute_script(ranges) == 0
    browser.execute_script("location.hash = arguments[0]", address)
    wait(browser, lambda b: set(runs_shown(b)) == best)
    assert browser.execute_script(ranges) == 1
    find(browser, "#clear")[0].click()


def test_losses_are_framed_by_their_means_and_one_stands_out(browser: webdriver.Chrome) -> None:
    show(browser, ".plot[data-key='loss']")
    wait(browser, lambda b: find(b, ".plot[data-key='loss'].js-drawn"))
    node = "document.querySelector('.plot[data-key=loss]')"
    read = f"const {{data, layout}} = {node}; return [data, layout.yaxis.type, layout.yaxis.range]"
    data, kind, (low, high) = browser.execute_script(read)
    lines = [trace for trace in data if "smooths" in trace["meta"] and trace["visible"]]
    ends = [end(value for line in lines for value in line["y"]) for end in (min, max)]
    assert kind == "linear" and low < ends[0] < ends[1] < high
    assert (ends[0] - low, high - ends[1]) == pytest.approx((0.05 * (ends[1] - ends[0]),) * 2)
    x, y = browser.execute_script(
        f"const {{layout: {{xaxis, yaxis}}}} = {node};"
        f"const area = {node}.querySelector('.nsewdrag').getBoundingClientRect();"
        "const share = (value, [low, high]) => (value - low) / (high - low);"
        "return [area.left + share(arguments[0], xaxis.range) * area.width,"
        " area.bottom - share(arguments[1], yaxis.range) * area.height]",
        lines[0]["x"][30], lines[0]["y"][30],
    )  # fmt: skip
    pointer = ActionBuilder(browser)
    pointer.pointer_action.move_to_location(round(x), round(y))
    pointer.perform()
    at = {line["meta"]["run"]: line["y"][30] for line in lines}

    def bright(b: webdriver.Chrome) -> set[str]:
        traces = [trace for trace in b.execute_script(read)[0] if "smooths" in trace["meta"]]
        return {trace["meta"]["run"] for trace in traces if trace.get("opacity", 1) == 1}

    wait(browser, lambda b: len(bright(b)) == 1)
    (run,) = bright(browser)
    assert at[run] == pytest.approx(lines[0]["y"][30], abs=0.02 * (high - low)), "the one under the pointer"
    find(browser, "#logarithmic")[0].click()
    wait(browser, lambda b: len(bright(b)) == 4)
    _, kind, (low, high) = browser.execute_script(read)
    assert kind == "log" and 10**low < ends[0] < ends[1] < 10**high and "loss=logarithmic" in browser.current_url
    find(browser, "#logarithmic")[0].click()
    assert "loss=" not in browser.current_url


def test_a_plot_takes_the_whole_screen(browser: webdriver.Chrome) -> None:
    show(browser, ".plot[data-key='lr']")
    wait(browser, lambda b: find(b, ".plot[data-key='lr'].js-drawn"))
    height = "return document.querySelector('.plot[data-key=lr] .main-svg').clientHeight"
    usual = browser.execute_script(height)
    (button,) = [
        each for each in find(browser, ".whole") if str(each.get_attribute("aria-label")).startswith("Learning")
    ]
    button.click()
    wait(browser, lambda b: b.execute_script(height) > usual)
    button.click()
    wait(browser, lambda b: b.execute_script(height) == usual)


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
