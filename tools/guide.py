"""Write the generated parts of streamfluence/guide/*.md, which a test compares with the code."""

from importlib.resources import files

from streamfluence.guide import PAGES, page

if __name__ == "__main__":
    folder = files("streamfluence") / "guide"
    for name in PAGES:
        (folder / f"{name}.md").write_text(page(name), encoding="utf-8")  # type: ignore[attr-defined]
