"""The page: tabs, theme and keyboard shortcuts."""

import html
from importlib import resources

import gradio as gr

from ra_hmd.console.check_tab import CheckTab
from ra_hmd.console.controller import Console
from ra_hmd.console.gradio_utils import on
from ra_hmd.console.history_tab import HistoryTab
from ra_hmd.console.review_tab import ReviewTab
from ra_hmd.console.stats_tab import render_stats

TITLE = "Meme review"
_FONTS = ("system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")
_SESSIONS = 100  # open pages kept in memory, each with its upload
_CLEANUP = (600, 3600)  # seconds: interval, and age from which uploads that were not read are deleted


def build_page(console: Console) -> gr.Blocks:
    """Build the page of a console, ready to be mounted."""
    static = resources.files("ra_hmd.console") / "static"
    script = (static / "keys.js").read_text(encoding="utf-8")
    with gr.Blocks(
        theme=_theme(),
        analytics_enabled=False,
        title=TITLE,
        css=(static / "style.css").read_text(encoding="utf-8"),
        head=f'<link rel="icon" href="data:,"><script>{script}</script>',
        delete_cache=_CLEANUP,
        fill_width=True,
    ) as page:
        greeting = gr.HTML(_greeting("", False), elem_id="ra-top")
        with gr.Tabs(elem_id="ra-tabs"):
            with gr.Tab("Check", id="check"):
                CheckTab(console)
            with gr.Tab("Review", id="review"):
                ReviewTab(console)
            with gr.Tab("History", id="history") as history:
                HistoryTab(console, history)
            with gr.Tab("Figures", id="figures") as figures:
                stats = gr.HTML(elem_id="figures-page")
                refresh = gr.Button("Read them again (R)", elem_id="figures-refresh")

        def show_stats(request: gr.Request) -> str:
            console.authenticator.user(request)
            return render_stats(console.service, console.names, console.queue)

        def greet(request: gr.Request) -> str:
            user = console.authenticator.user(request)
            return _greeting(f"{user.name} ({user.role})", console.authenticator.locked)

        for trigger in (figures.select, refresh.click):
            on(trigger, show_stats, (), [stats])
        on(page.load, greet, (), [greeting])
    page.queue(default_concurrency_limit=8)
    page.state_session_capacity = _SESSIONS  # what `launch` would set
    return page


def _theme() -> gr.themes.Base:
    """System fonts, and colours with a contrast of at least 4.5 to 1."""
    theme = gr.themes.Default(primary_hue="blue", font=_FONTS, font_mono=_MONO)
    quiet = {"body_text_color_subdued": "*neutral_600", "block_info_text_color": "*neutral_600",
             "block_title_text_color": "*neutral_700", "block_label_text_color": "*neutral_700"}  # fmt: skip
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        color_accent="*primary_700",
        input_border_color="*neutral_500",
        **quiet,
        **{f"{name}_dark": "*neutral_300" for name in quiet},
    )


def _greeting(who: str, locked: bool) -> str:
    leave = ' · <a href="logout">Log out</a>' if locked else ""
    return (
        f"<header><h1>{TITLE}</h1><p>{html.escape(who)}{leave}</p>"
        '<label class="ra-keys"><input type="checkbox" checked data-ra-keys> Keys (the letters on the buttons)</label>'
        "</header>"
    )
