"""Plots in a real browser: pointed at, clicked, drawn along, put on other axes."""

from __future__ import annotations

import pytest

from dbexp.compare.write import ComparisonFiles

pytest.importorskip("selenium", reason="needs selenium: pip install '.[test]'")
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.compare.page.browsing import find, runs_shown, show, wait


def test_a_point_of_the_front_tells_its_run(browser: webdriver.Chrome) -> None:
    show(browser, ".plot[data-key='front']")
    points = wait(browser, lambda b: find(b, ".plot[data-key='front'].js-drawn .scatterlayer .point"))
    assert len(points) == 4
    ActionChains(browser).move_to_element(points[-1]).perform()
    label = wait(browser, lambda b: "".join(element.text for element in find(b, ".plot[data-key='front'] .hoverlayer")))
    assert "rank=" in label and "PRES" in label


def test_a_click_on_a_point_opens_its_run(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    show(browser, ".plot[data-key='front']")
    points = wait(browser, lambda b: find(b, ".plot[data-key='front'].js-drawn .scatterlayer .point"))
    ActionChains(browser).move_to_element(points[-1]).pause(0.3).click().perform()
    (card,) = wait(browser, lambda b: find(b, "#run-card[open]"))
    title = card.find_element(By.CSS_SELECTOR, "h2").text
    assert title in {entry.title for entry in shown.comparison.finished}
    card.send_keys(Keys.ESCAPE)
    wait(browser, lambda b: not find(b, "#run-card[open]"))


def test_any_two_columns_are_put_on_the_axes(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
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
    for entry in shown.comparison.finished:
        x, y = points[entry.id]["x"][0], points[entry.id]["y"][0]
        assert (x, y) == pytest.approx((entry.run.value("clip_t"), entry.run.value("pres")))
    assert [trace["visible"] for trace in data if "meta" not in trace] == [False], "the front is one of other columns"
    menu.select_by_index(0)
    assert title.text == "DINO against CLIP-T" and note.is_displayed()


def test_what_is_drawn_along_an_axis_chooses_runs_everywhere(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    show(browser, ".plot[data-key='parallel']")
    wait(browser, lambda b: find(b, ".plot[data-key='parallel'].js-drawn"))
    node = "document.querySelector('.plot[data-key=parallel]')"
    labels = browser.execute_script(f"return {node}.data[0].dimensions.map(({{label}}) => label)")
    values = sorted(entry.run.value("dino") for entry in shown.comparison.finished)
    middle = (values[1] + values[2]) / 2
    change = f"Plotly.restyle({node}, {{'dimensions[{labels.index('DINO ↑')}].constraintrange': [[{middle}, 9]]}})"
    browser.execute_script(change)
    best = {entry.id for entry in shown.comparison.finished if entry.run.value("dino") > middle}
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
        "return [[arguments[0], xaxis.range], [arguments[1], yaxis.range]]"
        ".map(([value, [low, high]]) => (value - low) / (high - low) - 0.5)",
        lines[0]["x"][30], lines[0]["y"][30],
    )  # fmt: skip
    (area,) = find(browser, ".plot[data-key='loss'] .nsewdrag")
    across, down = x * area.size["width"], -y * area.size["height"]
    ActionChains(browser).move_to_element_with_offset(area, round(across), round(down)).perform()
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


def test_lines_are_coloured_by_what_the_reader_asks_for(browser: webdriver.Chrome, shown: ComparisonFiles) -> None:
    show(browser, ".plot[data-key='loss']")
    wait(browser, lambda b: find(b, ".plot[data-key='loss'].js-drawn"))
    menu = Select(find(browser, "#loss-colour")[0])
    assert [option.text for option in menu.options] == ["setting", "rank", "weight"]
    menu.select_by_visible_text("rank")
    seen = "filter(({meta, visible}) => visible && 'smooths' in meta)"
    read = f"return document.querySelector('.plot[data-key=loss]').data.{seen}"
    lines = browser.execute_script(read)
    rank = {entry.id: entry.settings["lora.rank"] for entry in shown.comparison.finished}
    assert {line["meta"]["run"]: line["name"] for line in lines} == {
        run: f"rank={level}" for run, level in rank.items()
    }
    assert len({(line["name"], line["line"]["color"]) for line in lines}) == 2
    assert sorted(line["name"] for line in lines if line["showlegend"]) == ["rank=4", "rank=8"]
    menu.select_by_index(0)
    assert len({line["line"]["color"] for line in browser.execute_script(read)}) == 4
    show(browser, ".plot[data-key='parallel']")
    wait(browser, lambda b: find(b, ".plot[data-key='parallel'].js-drawn"))
    menu = Select(find(browser, "#parallel-colour")[0])
    menu.select_by_visible_text("PRES ↓")
    line = browser.execute_script("return document.querySelector('.plot[data-key=parallel]').data[0].line")
    assert line["color"] == pytest.approx([entry.run.value("pres") for entry in shown.comparison.finished])
    assert line["colorbar"]["title"]["text"] == "PRES ↓"
    menu.select_by_index(0)


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
    show(browser, ".plot[data-key='prompts']")  # a plot that nobody sees waits until somebody does
    wait(browser, lambda b: b.execute_script(f"return [{data}[1].x.length, {data}[1].z[0].length]") == [2, 2])
    level.click()
    show(browser, ".plot[data-key='prompts']")
    wait(browser, lambda b: b.execute_script(f"return {data}[1].x.length") == 4)
