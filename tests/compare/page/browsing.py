"""What a reader does with the page."""

from __future__ import annotations

from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 300  # seconds; a quiet machine needs few of them


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
