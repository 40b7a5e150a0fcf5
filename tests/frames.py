"""Waiting in frames of the page rather than by the clock, since a busy machine's frames are late."""

from playwright.sync_api import Page


def rest(page: Page, milliseconds: float) -> None:
    """Until the page has drawn what it now asks the next frame for, and what it does so long after that frame."""
    page.evaluate(
        """(after) => new Promise((done) => requestAnimationFrame(
            () => setTimeout(() => requestAnimationFrame(done), after)))""",
        milliseconds,
    )
