"""The page in a real browser: sorted, filtered, found, saved, and what its address says."""

from __future__ import annotations

import csv
import io

import pytest

from dbexp.compare.write import ComparisonFiles
from tests.compare import sweeps

pytest.importorskip("selenium", reason="needs selenium: pip install '.[test]'")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.compare.page.browsing import find, runs_shown, show, wait


def test_a_click_on_a_heading_sorts(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    value = {entry.id: entry.run.value("pres") for entry in shown.comparison.finished}
    values = [value[run] for run in runs_shown(browser)]
    assert values != sorted(values)
    (heading,) = [element for element in find(browser, "#runs thead button") if element.text.startswith("PRES")]
    heading.click()
    assert [value[run] for run in runs_shown(browser)] == sorted(values), "lower is better, so it comes first"
    heading.click()
    assert [value[run] for run in runs_shown(browser)] == sorted(values, reverse=True)


def test_a_click_on_a_value_hides_its_runs(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    (level,) = find(browser, "#filter button[data-factor='lora.rank'][data-level='8']")
    level.click()
    runs = {entry.id for entry in shown.comparison.finished if entry.settings["lora.rank"] == "4"}
    assert len(runs) == 2 and set(runs_shown(browser)) == runs
    assert find(browser, "#count")[0].text == "2 of 4 runs shown"
    level.click()
    assert len(runs_shown(browser)) == 4


def test_runs_are_found_by_words_and_by_comparisons(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    field = show(browser, "#find")
    field.send_keys("rank = 4, DINO > 0")
    runs = {entry.id for entry in shown.comparison.finished if entry.settings["lora.rank"] == "4"}
    assert set(runs_shown(browser)) == runs and "find=" in browser.current_url
    field.clear()
    field.send_keys("rank = 4, weight = 1 or rank = 8, weight = 0")
    both = {("4", "1"), ("8", "0")}
    settings = {entry.id: entry.settings for entry in shown.comparison.finished}
    assert {(settings[run]["lora.rank"], settings[run]["prior.weight"]) for run in runs_shown(browser)} == both
    field.clear()
    field.send_keys("dino < 0")
    assert runs_shown(browser) == []
    field.clear()
    field.send_keys(" ", Keys.BACKSPACE)
    assert len(runs_shown(browser)) == 4 and "find=" not in browser.current_url


def test_a_table_is_saved_as_it_is_seen(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    browser.execute_script("URL.createObjectURL = (blob) => { window.saved = blob; return '#'; }")
    show(browser, ".save[data-table='runs']").click()
    text = browser.execute_async_script("window.saved.text().then(arguments[0])")
    head, *rows = csv.DictReader(io.StringIO(text)), *csv.DictReader(io.StringIO(text))
    assert head.fieldnames is not None and {"run", "rank", "weight", "DINO ↑", "PRES ↓"} <= set(head.fieldnames)
    dino = {row["run"].split(" ")[0]: row["DINO ↑"] for row in rows}
    for entry in shown.comparison.finished:
        assert float(dino[entry.id]) == pytest.approx(entry.run.value("dino"), abs=1e-9)


def test_an_address_brings_its_view_back(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    browser.execute_script("location.hash = 'hide=lora.rank%3D8&menu=seed-choice%3D1'")
    ranks = {entry.id: entry.settings["lora.rank"] for entry in shown.comparison.finished}
    wait(browser, lambda b: {ranks[run] for run in runs_shown(b)} == {"4"})
    assert Select(find(browser, "#seed-choice")[0]).first_selected_option.get_attribute("value") == "1"
    browser.execute_script("location.hash = ''")
    wait(browser, lambda b: len(runs_shown(b)) == 4)
    assert Select(find(browser, "#seed-choice")[0]).first_selected_option.get_attribute("value") == "0"


def test_columns_are_chosen_and_stand_in_the_address(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
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
    best = shown.comparison.finished[0]
    (cell,) = find(browser, f"#runs tr[data-run='{best.id}'] td[data-column='dino_max']")
    assert cell.text.split(" ")[0] == f"{best.run.value('dino_max'):.3f}"
    address = browser.current_url
    menu.find_element(By.CSS_SELECTOR, "[data-usual]").click()
    assert headings() == usual and "columns=" not in browser.current_url
    browser.execute_script("location.hash = arguments[0]", address.partition("#")[2])
    wait(browser, lambda b: headings() == chosen)
    menu.find_element(By.CSS_SELECTOR, "[data-usual]").click()
    find(browser, "#columns summary")[0].click()


def test_the_order_of_a_table_stands_in_the_address(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    first = runs_shown(browser)
    by_weight = sorted(shown.comparison.finished, key=lambda entry: float(entry.settings["prior.weight"]))
    browser.execute_script("location.hash = 'sort=runs+ascending+weight'")
    weights = [entry.settings["prior.weight"] for entry in by_weight]
    settings = {entry.id: entry.settings["prior.weight"] for entry in shown.comparison.finished}
    wait(browser, lambda b: [settings[run] for run in runs_shown(b)] == weights)
    (heading,) = [element for element in find(browser, "#runs thead button") if element.text.startswith("weight")]
    heading.click()
    assert "sort=runs+descending+weight" in browser.current_url
    browser.execute_script("location.hash = ''")
    wait(browser, lambda b: runs_shown(b) == first)


def test_the_bar_says_what_is_shown_and_brings_all_of_it_back(browser: webdriver.Chrome) -> None:
    show(browser, "#filter button[data-factor='lora.rank'][data-level='8']").click()
    show(browser, "#find").send_keys("weight = 1")
    rows = runs_shown(browser)
    assert len(rows) == 1 and find(browser, "#count")[0].text == "1 of 4 runs shown"
    (link,) = [link for link in find(browser, "#bar a") if link.text == "Plots"]
    link.click()
    wait(
        browser,
        lambda b: b.execute_script(
            "return Math.abs(document.querySelector('#plots').getBoundingClientRect().top) < 200"
        ),
    )
    assert "hide=lora.rank" in browser.current_url and runs_shown(browser) == rows, "a link is no change of view"
    wait(browser, lambda b: [link.text for link in find(b, "#bar a[aria-current]")] == ["Plots"])
    find(browser, "#clear")[0].click()
    assert len(runs_shown(browser)) == 4 and "#" not in browser.current_url
    assert find(browser, "#count")[0].text == "" and not find(browser, "#clear")[0].is_displayed()


def test_a_run_has_all_of_it_on_a_card(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    entry = shown.comparison.finished[1]
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


def test_two_parameters_are_crossed_over_the_runs_shown(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    column, down, across = (Select(show(browser, f"#pair-{what}")) for what in ("column", "down", "across"))
    column.select_by_value("pres")
    down.select_by_value("prior.weight")
    across.select_by_value("lora.rank")

    def cells() -> list[list[str]]:
        rows = find(browser, "#pair tr")
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]

    value = {
        tuple(map(e.settings.get, ("prior.weight", "lora.rank"))): e.run.value("pres")
        for e in shown.comparison.finished
    }
    rows = [[weight, *(f"{value[weight, rank]:.3f} 1 run" for rank in ("4", "8"))] for weight in ("0", "1")]
    assert cells() == [["weight ↓ rank →", "4", "8"], *rows]
    assert {cell.text for cell in find(browser, "#pair .best")} == {f"{min(value.values()):.3f} 1 run"}
    assert "menu=pair-down%3Dprior.weight" in browser.current_url
    level = show(browser, "#filter button[data-factor='lora.rank'][data-level='8']")
    level.click()
    assert [row[-1] for row in cells()[1:]] == ["–", "–"]
    level.click()
    for menu in (column, down, across):
        menu.select_by_index(0)
