"""What axe-core has to say of a page."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page


def violations(page: Page) -> list[str]:
    """The rules that the page breaks as it stands, each with the first element concerned."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']} — {v['nodes'][0]['html'][:120]}" for v in found]
