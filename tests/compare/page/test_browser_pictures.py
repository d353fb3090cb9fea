"""Pictures in a real browser: enlarged, flipped, arranged, side by side."""

from __future__ import annotations

import pytest

from dbexp.compare.write import ComparisonFiles
from tests.compare import sweeps

pytest.importorskip("selenium", reason="needs selenium: pip install '.[test]'")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.compare.page.browsing import find, runs_shown, show, wait


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


def test_arrow_keys_flip_through_a_row_and_between_prompts(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
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
    best_first = [entry.title for entry in shown.comparison.finished]
    assert seen == [*best_first, "a photograph of the subject", "base model"]
    large.send_keys(Keys.ARROW_DOWN)
    assert sweeps.PROMPTS[1] in words() and words().startswith("base model")
    large.send_keys(Keys.ARROW_UP)
    large.send_keys(Keys.ARROW_UP)
    assert sweeps.PROMPTS[-1] in words(), "the first row is followed by the last"
    large.send_keys(Keys.ESCAPE)
    wait(browser, lambda b: not find(b, "#large[open]"))


def test_beside_every_picture_is_the_photograph_nearest_to_it(
    browser: webdriver.Chrome, shown: ComparisonFiles
) -> None:
    """And the arrow keys come to the same photograph; `p` puts it into the picture's place."""
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    Select(find(browser, "#seed-choice")[0]).select_by_index(0)
    best = shown.comparison.finished[0]
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


def test_pictures_are_arranged_by_two_parameters(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    Select(find(browser, "#axes-choice")[0]).select_by_visible_text("weight ↓ rank →")
    Select(find(browser, "#prompt-choice")[0]).select_by_visible_text(sweeps.PROMPTS[2])
    rows = find(browser, "#sheet [data-lazy] tr")
    heads = [cell.text for cell in rows[0].find_elements(By.CSS_SELECTOR, "th")]
    assert heads[0].startswith("base model") and heads[1:] == ["rank=4", "rank=8"]
    by_id = {entry.id: entry for entry in shown.comparison.finished}
    for row in rows[1:]:
        weight = row.find_element(By.CSS_SELECTOR, "th").text.removeprefix("weight=")
        cells = row.find_elements(By.CSS_SELECTOR, "td")
        for cell, rank in zip(cells, ("4", "8"), strict=True):
            (figure,) = cell.find_elements(By.CSS_SELECTOR, "[data-run]")
            settings = by_id[str(figure.get_attribute("data-run"))].settings
            assert (settings["prior.weight"], settings["lora.rank"]) == (weight, rank)
            title = figure.find_element(By.CSS_SELECTOR, ".shot").get_attribute("title")
            assert title is not None and sweeps.PROMPTS[2] in title
    assert "menu=axes-choice" in browser.current_url
    Select(find(browser, "#axes-choice")[0]).select_by_index(0)


def test_the_opening_is_a_table_of_settings_with_pictures(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    """A column per setting, best first: its values, its scores as results.csv has them, the same prompts."""
    show(browser, "#opening")
    wait(browser, lambda b: find(b, "#opening tbody tr img"))
    head, *lines = find(browser, "#opening tr")

    def cells(row: WebElement) -> list[str]:
        return [cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]

    standings = shown.comparison.standings
    assert cells(head) == ["place", "photograph", "base model", "take", "2", "3", "4"]
    titles = [cell.get_attribute("title") for cell in head.find_elements(By.CSS_SELECTOR, "th")][2:]
    assert titles == [standing.title for standing in standings]
    rows = {name: values for name, *values in map(cells, lines)}
    assert rows["rank"] == ["", "", *(standing.settings["lora.rank"] for standing in standings)]
    assert rows["weight"] == ["", "", *(standing.settings["prior.weight"] for standing in standings)]
    assert rows["DINO ↑"][2:] == [f"{standing.moments['dino'].mean:.3f}" for standing in standings]
    (base,) = [reference for reference in shown.comparison.references if reference.key == "base"]
    assert rows["DINO ↑"][:2] == ["", f"{base.columns['dino'].value:.3f}"]
    drawn = find(browser, "#opening .drawn")
    assert [len(row.find_elements(By.CSS_SELECTOR, ".shot")) for row in drawn] == [6, 6]


def test_ticked_runs_stand_side_by_side_and_in_the_address(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    chosen = [entry.id for entry in shown.comparison.finished][1:3]
    for run in chosen:
        show(browser, f".choose[value='{run}']").click()
    columns = [h.get_attribute("data-run") for h in find(browser, "#sheet thead th[data-run]") if h.is_displayed()]
    assert columns == chosen
    assert len(runs_shown(browser)) == 4, "the others can still be ticked"
    assert f"#run={chosen[0]}&run={chosen[1]}" in browser.current_url
    show(browser, "#clear").click()
    assert "run=" not in browser.current_url
    assert all(heading.is_displayed() for heading in find(browser, "#sheet thead th[data-run]"))
