"""The page as a whole, in a real browser: on a telephone, for every eye, without an error and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium", reason="needs selenium: pip install '.[test]'")
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.compare.page.browsing import find, show, wait

CONTRAST = """
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, place) => a * value + (1 - a) * below[place]);
const paper = (node) => {
  const chain = [];
  for (let each = node; each; each = each.parentElement) chain.unshift(getComputedStyle(each).backgroundColor);
  return chain.reduce((below, colour) => over(numbers(colour), below), [255, 255, 255]);
};
const light = (colour) => {
  const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const opacity = (node) => (node ? Number(getComputedStyle(node).opacity) * opacity(node.parentElement) : 1);
const poor = [];
for (const node of document.querySelectorAll("body *:not(.plot *, script, style, noscript *)")) {
  const words = [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim());
  if (!words.length || !node.checkVisibility()) continue;
  const below = paper(node);
  const ink = over([...numbers(getComputedStyle(node).color).slice(0, 3), opacity(node)], below);
  const [high, low] = [light(ink), light(below)].sort((a, b) => b - a);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${node.outerHTML.slice(0, 120)}`);
}
return poor;
"""
"""Elements whose words have a contrast below 4.5, as WCAG 2.2 reckons it (1.4.3)."""


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


def test_words_stand_out_in_light_and_in_dark(browser: webdriver.Chrome) -> None:
    show(browser, "[data-lazy='sheet']")
    wait(browser, lambda b: find(b, "#sheet tbody tr img"))
    for _ in range(2):
        assert browser.execute_script(CONTRAST) == []
        find(browser, "#theme")[0].click()


def test_what_can_be_pressed_has_a_name_and_shows_that_it_has_the_focus(browser: webdriver.Chrome) -> None:
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, a, input, select, .plot, dialog')].filter((node) => {"
        " const words = node.getAttribute('aria-label') || node.textContent.trim() || node.title"
        " || node.labels?.[0]?.textContent.trim();"
        " return !words && !node.querySelector('img[alt]'); }).map((node) => node.outerHTML.slice(0, 120))"
    )
    assert nameless == []
    (body,) = find(browser, "body")
    body.click()
    for _ in range(4):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


def test_all_of_it_is_on_paper(browser: webdriver.Chrome) -> None:
    """Also what no reader has scrolled to, and no plot is wider than a sheet."""
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert find(browser, "[data-lazy]:not([data-filled])") == []
    widths = "return [...document.querySelectorAll('.plot .main-svg')].map((node) => node.clientWidth)"
    wait(browser, lambda b: b.execute_script(widths) and max(b.execute_script(widths)) <= 690)
    pictures = "return [...document.querySelectorAll('.shot img')].filter((image) => image.loading === 'lazy').length"
    assert browser.execute_script(pictures) == 0, "a browser prints no picture that waits to be seen"
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    wait(browser, lambda b: max(b.execute_script(widths)) > 690)


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
