import os


def test_look(desk, browser):
    with desk(cases=5) as served:
        for lang in ("en", "de"):
            for w, h in ((1280, 800), (390, 844)):
                for theme in ("light", "dark"):
                    ctx = browser.new_context(viewport={"width": w, "height": h}, color_scheme=theme, locale=lang)
                    p = ctx.new_page()
                    for name in os.environ["PAGES"].split(","):
                        p.goto(served.address + "/" + name)
                        p.wait_for_timeout(300)
                        p.screenshot(
                            path=f"/tmp/team/shots/{name.replace('/', '_')}-{lang}-{w}-{theme}.png", full_page=True
                        )
                    ctx.close()
